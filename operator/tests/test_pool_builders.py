"""What a pool is made of: restricted pods, walls around them, and templates that cannot take the walls down."""

from __future__ import annotations

import asyncio
import copy
import socket
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from deepcoder_contracts.api.sandboxpool import MAX_NAME_LENGTH, SandboxPoolSpec
from deepcoder_operator.builders.podtemplate import TemplateError, merge
from deepcoder_operator.builders.pool import (
    PoolIdentity,
    PoolSettings,
    build_disruption_budget,
    build_network_policy,
    build_pod,
    build_pod_template,
    build_service,
    build_token_secret,
    template_hash,
)
from deepcoder_operator.domain.names import LABEL_RUN, own_pool_name
from deepcoder_operator.domain.pool_names import LABEL_AVOIDS, LABEL_POOL, LABEL_TEMPLATE_HASH, pod_name
from deepcoder_operator.domain.pool_nodes import Avoidance
from deepcoder_sandbox.server.listener import open_listener

POOL = PoolIdentity("ml", "judges", "11111111-1111-1111-1111-111111111111")
SETTINGS = PoolSettings("deepcoder-sandbox:1", "deepcoder", {"app.kubernetes.io/name": "deepcoder-operator"}, LABEL_RUN)

_NO_IPV6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")


def spec(**fields: Any) -> SandboxPoolSpec:
    return SandboxPoolSpec.model_validate(fields)


def pod(**fields: Any) -> dict[str, Any]:
    return build_pod(POOL, build_pod_template(POOL, spec(**fields), SETTINGS), 0)


def judge(**fields: Any) -> dict[str, Any]:
    return pod(**fields)["spec"]["containers"][0]


def test_pod_meets_the_restricted_standard() -> None:
    body = pod()["spec"]
    assert body["automountServiceAccountToken"] is False
    assert body["securityContext"]["runAsNonRoot"] is True
    assert body["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in body["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }


@pytest.mark.parametrize("fixed", [True, False])
def test_user_and_groups_are_ours_or_the_clusters(fixed: bool) -> None:
    made = build_pod_template(POOL, spec(), replace(SETTINGS, fixed_user=fixed))["spec"]["securityContext"]
    named = {name: made[name] for name in ("runAsUser", "runAsGroup", "fsGroup") if name in made}
    assert named == ({"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000} if fixed else {})
    assert made["runAsNonRoot"] is True


def test_server_is_started_as_the_spec_says() -> None:
    command = judge(slotsPerPod=3, isolation={"minimumTier": "Namespaces"})["command"]
    options = dict(zip(command[2::2], command[3::2], strict=True))
    assert command[:2] == ["deepcoder-sandbox", "serve"]
    assert options["--slots"] == "3"
    assert options["--minimum-tier"] == "Namespaces"
    memory = judge(slotsPerPod=3)["resources"]["limits"]["memory"]
    assert memory == f"{1900 + 3 * 1296}Mi"  # a test's 1 GiB a slot, and its output, which is held in memory
    mounts = {m["mountPath"]: m for m in judge()["volumeMounts"]}
    assert options["--token-file"] == "/etc/deepcoder/token/token"
    assert mounts["/etc/deepcoder/token"]["readOnly"] is True
    assert judge()["terminationMessagePolicy"] == "FallbackToLogsOnError"


@pytest.mark.parametrize("family", [socket.AF_INET, pytest.param(socket.AF_INET6, marks=_NO_IPV6)])
async def test_judge_listens_on_every_address_whichever_family_it_is_of(
    family: socket.AddressFamily, unused_tcp_port: int
) -> None:
    """A kubelet probes the first address of a pod, which in a cluster of two families may be either."""
    command = judge()["command"]
    host = command[command.index("--host") + 1]
    runner = web.AppRunner(web.Application())
    await runner.setup()
    server, _ = await open_listener(runner, host, unused_tcp_port, None, 1)
    try:
        address = "127.0.0.1" if family is socket.AF_INET else "::1"
        _, writer = await asyncio.open_connection(address, unused_tcp_port)
        writer.close()
    finally:
        server.close()
        await runner.cleanup()


def test_a_mesh_puts_no_proxy_into_a_judge_unless_the_template_says_so() -> None:
    """It has no egress, so that the proxy would never be ready, nor the judge with it."""
    made = pod()["metadata"]
    assert made["labels"]["sidecar.istio.io/inject"] == "false"
    assert made["annotations"]["linkerd.io/inject"] == "disabled"
    wanted = {"metadata": {"labels": {"sidecar.istio.io/inject": "true"}}}
    made = pod(template=wanted, isolation={"egress": "Unmanaged"})["metadata"]
    assert made["labels"]["sidecar.istio.io/inject"] == "true"


def test_image_is_the_pools_or_the_operators() -> None:
    assert judge()["image"] == "deepcoder-sandbox:1"
    assert judge(image="mine@sha256:abc")["image"] == "mine@sha256:abc"


def test_runtime_class_reaches_the_pod() -> None:
    assert pod(isolation={"runtimeClassName": "kata"})["spec"]["runtimeClassName"] == "kata"
    assert "runtimeClassName" not in pod()["spec"]


def test_template_adds_scheduling_and_resources_and_keeps_the_rest() -> None:
    body = pod(
        template={
            "metadata": {"labels": {"team": "rl"}},
            "spec": {
                "nodeSelector": {"pool": "cpu"},
                "imagePullSecrets": [{"name": "registry"}],
                "containers": [
                    {"name": "judge", "resources": {"requests": {"cpu": "500m"}}, "env": [{"name": "A", "value": "1"}]}
                ],
                "volumes": [{"name": "cache", "emptyDir": {}}],
            },
        }
    )
    container = body["spec"]["containers"][0]
    assert body["metadata"]["labels"]["team"] == "rl"
    assert body["metadata"]["labels"][LABEL_POOL] == "judges"
    assert body["spec"]["nodeSelector"] == {"pool": "cpu"}
    assert container["resources"]["requests"]["cpu"] == "500m"
    assert container["resources"]["requests"]["memory"]
    assert container["command"][0] == "deepcoder-sandbox"
    assert {v["name"] for v in body["spec"]["volumes"]} == {"scratch", "token", "cache"}


def test_a_judge_whose_memory_is_limited_to_less_than_the_default_requests_no_more_than_that() -> None:
    """A request above its limit is refused by the API server, and a template that sets a limit names no request."""
    limited = {"limits": {"cpu": "4", "memory": "2Gi"}}
    made = judge(template={"spec": {"containers": [{"name": "judge", "resources": limited}]}})["resources"]
    assert made["limits"].items() >= limited["limits"].items()
    assert set(made["requests"]) == {"ephemeral-storage"}


def side(context: dict[str, Any]) -> dict[str, Any]:
    return {"spec": {"initContainers": [{"name": "side", "image": "s", "securityContext": context}]}}


def test_containers_that_a_template_adds_meet_the_restricted_standard_too() -> None:
    allowed = {"capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]}, "runAsUser": 2000}
    body = pod(template={"spec": {"containers": [{"name": "side", "image": "s"}], **side(allowed)["spec"]}})["spec"]
    contexts = {c["name"]: c["securityContext"] for c in body["containers"]}
    assert contexts["side"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert contexts["judge"]["readOnlyRootFilesystem"] is True
    assert body["initContainers"][0]["securityContext"] == allowed | {"allowPrivilegeEscalation": False}


@pytest.mark.parametrize("context", [None, {"allowPrivilegeEscalation": None, "capabilities": {"drop": None}}])
def test_null_does_not_take_the_standard_away(context: dict[str, Any] | None) -> None:
    container = {"name": "side", "image": "s", "securityContext": context}
    body = pod(template={"spec": {"initContainers": [container]}})["spec"]
    assert body["initContainers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize(
    ("template", "field"),
    [
        ({"spec": {"hostNetwork": True}}, "spec.template.spec.hostNetwork"),
        ({"spec": {"automountServiceAccountToken": True}}, "automountServiceAccountToken"),
        ({"spec": {"runtimeClassName": "runc"}}, "runtimeClassName"),
        ({"spec": {"containers": [{"name": "judge", "image": "x"}]}}, r"containers\[judge\].image"),
        ({"spec": {"containers": [{"name": "judge", "command": ["sh"]}]}}, "command"),
        ({"spec": {"containers": [{"name": "judge", "securityContext": {}}]}}, "securityContext"),
        ({"spec": {"containers": [{"name": "side", "securityContext": {"privileged": True}}]}}, "privileged"),
        ({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}}, r"volumes\[v\].hostPath"),
        ({"spec": {"volumes": [{"name": "v", "nfs": {"server": "s", "path": "/"}}]}}, r"volumes\[v\].nfs"),
        ({"spec": {"shareProcessNamespace": True}}, "shareProcessNamespace"),
        (
            {"metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/judge": "unconfined"}}},
            "apparm",
        ),
        ({"spec": {"containers": [{"name": "side", "ports": [{"containerPort": 80, "hostPort": 80}]}]}}, "hostPort"),
        (side({"runAsUser": 0}), r"initContainers\[side\].securityContext.runAsUser"),
        (side({"runAsNonRoot": False}), "securityContext.runAsNonRoot"),
        (side({"allowPrivilegeEscalation": True}), "securityContext.allowPrivilegeEscalation"),
        (side({"capabilities": {"add": ["SYS_ADMIN"]}}), "securityContext.capabilities"),
        (side({"capabilities": {"drop": ["NET_RAW"]}}), "securityContext.capabilities"),
        (side({"capabilities": {"drop": []}}), "securityContext.capabilities"),
        (side({"seccompProfile": {"type": "Unconfined"}}), "securityContext.seccompProfile"),
        (side({"appArmorProfile": {"type": "Unconfined"}}), "securityContext.appArmorProfile"),
        (side({"procMount": "Unmasked"}), "securityContext.procMount"),
        (side({"seLinuxOptions": {"type": "spc_t"}}), "securityContext.seLinuxOptions"),
        (side({"windowsOptions": {"hostProcess": True}}), "securityContext.windowsOptions"),
        (side({"capabilities": "SYS_ADMIN"}), "capabilities must be a map"),
        ({"spec": "x"}, "spec.template.spec must be a map"),
        ({"spec": {"securityContext": {"runAsUser": 0}}}, "securityContext"),
        ({"metadata": {"labels": {LABEL_POOL: "other"}}}, "metadata.labels"),
    ],
)
def test_template_cannot_take_down_the_walls(template: dict[str, Any], field: str) -> None:
    with pytest.raises(TemplateError, match=field):
        pod(template=template)


def test_hash_follows_what_changes_the_pod_and_nothing_else() -> None:
    def digest(**fields: Any) -> str:
        return template_hash(build_pod_template(POOL, spec(**fields), SETTINGS))

    assert digest(maxReplicas=50, scaling={"targetQueuePerSlot": 3}) == digest()
    changed = [digest(image="other"), digest(slotsPerPod=4), digest(template={"spec": {"priorityClassName": "low"}})]
    assert len({digest(), *changed}) == 4


NOT_A = {"key": "metadata.name", "operator": "NotIn", "values": ["a"]}
NOT_B = {"key": "metadata.name", "operator": "NotIn", "values": ["b"]}
SSD = {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}


def kept_off(required: bool, **fields: Any) -> dict[str, Any]:
    template = build_pod_template(POOL, spec(**fields), SETTINGS)
    before = copy.deepcopy(template)
    made = build_pod(POOL, template, 0, Avoidance(("a", "b"), required))
    assert template == before, "the next judge may be free of it"
    assert made["metadata"]["labels"][LABEL_TEMPLATE_HASH] == template_hash(template), "it is no other template's"
    return made


def test_judge_that_must_go_elsewhere_may_not_come_to_nodes_that_are_avoided() -> None:
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    affinity = kept_off(True)["spec"]["affinity"]["nodeAffinity"]
    assert affinity == {required: {"nodeSelectorTerms": [{"matchFields": [NOT_A, NOT_B]}]}}
    theirs = {
        "spec": {"affinity": {"nodeAffinity": {required: {"nodeSelectorTerms": [SSD, {"matchFields": [NOT_A]}]}}}}
    }
    affinity = kept_off(True, template=theirs)["spec"]["affinity"]["nodeAffinity"]
    terms = [SSD | {"matchFields": [NOT_A, NOT_B]}, {"matchFields": [NOT_A, NOT_A, NOT_B]}]
    assert affinity == {required: {"nodeSelectorTerms": terms}}, "one of them has to match: each must keep it off"


def test_judge_that_should_go_elsewhere_still_has_the_nodes_that_are_avoided() -> None:
    preferred = "preferredDuringSchedulingIgnoredDuringExecution"
    ours, wanted = {"weight": 100, "preference": {"matchFields": [NOT_A, NOT_B]}}, {"weight": 1, "preference": SSD}
    assert kept_off(False)["spec"]["affinity"]["nodeAffinity"] == {preferred: [ours]}
    theirs = {"spec": {"affinity": {"nodeAffinity": {preferred: [wanted]}, "podAntiAffinity": {}}}}
    affinity = kept_off(False, template=theirs)["spec"]["affinity"]
    assert affinity == {"nodeAffinity": {preferred: [wanted, ours]}, "podAntiAffinity": {}}


@pytest.mark.parametrize(
    "affinity",
    [
        {"nodeAffinity": None},
        {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": None}},
        {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": None}},
        {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": None}}},
    ],
)
@pytest.mark.parametrize("required", [False, True])
def test_affinity_that_a_template_names_and_leaves_empty_keeps_no_judge_from_being_made(
    affinity: dict[str, Any], required: bool
) -> None:
    """As charts write it whose values hold nothing; the API server keeps a null where it knows no schema."""
    made = kept_off(required, template={"spec": {"affinity": affinity}})
    assert "metadata.name" in str(made["spec"]["affinity"])


def test_judge_says_by_a_label_what_it_was_made_to_avoid() -> None:
    labels = [
        build_pod(POOL, build_pod_template(POOL, spec(), SETTINGS), 0, avoidance)["metadata"]["labels"].get(
            LABEL_AVOIDS
        )
        for avoidance in (Avoidance(), Avoidance(("a",)), Avoidance(("a",), True), Avoidance(("a", "b")))
    ]
    assert labels[0] is None
    assert len(set(labels)) == 4


def test_names_fit_for_the_longest_run() -> None:
    assert len(own_pool_name("r" * 36)) <= MAX_NAME_LENGTH
    assert len(pod_name("p" * MAX_NAME_LENGTH, 9999, "0" * 8)) <= 63


def test_judges_reach_nobody_and_are_reached_by_runs_and_the_operator() -> None:
    policy = build_network_policy(POOL, spec(), SETTINGS)["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"port": 8080, "protocol": "TCP"}]
    runs, operator = rule["from"]
    assert runs == {"podSelector": {"matchExpressions": [{"key": LABEL_RUN, "operator": "Exists"}]}}
    assert operator["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "deepcoder"}
    assert operator["podSelector"]


def test_unmanaged_egress_leaves_egress_to_other_policies() -> None:
    policy = build_network_policy(POOL, spec(isolation={"egress": "Unmanaged"}), SETTINGS)["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert "egress" not in policy


def test_service_is_headless_and_shows_ready_judges_only() -> None:
    body = build_service(POOL)
    assert body["metadata"]["name"] == "judges-judge"
    assert body["spec"]["clusterIP"] == "None"
    assert body["spec"]["publishNotReadyAddresses"] is False


@pytest.mark.parametrize(("judges", "kept"), [(0, 0), (1, 0), (2, 1), (4, 3), (16, 12), (17, 12)])
def test_drained_nodes_take_a_quarter_of_the_judges_at_a_time_and_one_at_least(judges: int, kept: int) -> None:
    budget = build_disruption_budget(POOL, judges)["spec"]
    assert budget["minAvailable"] == kept
    assert "maxUnavailable" not in budget
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_everything_goes_with_the_pool() -> None:
    objects = [
        build_service(POOL),
        build_token_secret(POOL, "t"),
        build_network_policy(POOL, spec(), SETTINGS),
        build_disruption_budget(POOL, 4),
        pod(),
    ]
    for obj in objects:
        (owner,) = obj["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (POOL.uid, True)
        assert obj["metadata"]["namespace"] == "ml"


def test_merge_is_strategic() -> None:
    base = {"a": {"b": 1, "c": 2}, "env": [{"name": "X", "value": "1"}], "tolerations": [{"key": "a"}]}
    over = {"a": {"b": None, "d": 3}, "env": [{"name": "X", "value": "2"}, {"name": "Y"}], "tolerations": []}
    assert merge(base, over) == {
        "a": {"c": 2, "d": 3},
        "env": [{"name": "X", "value": "2"}, {"name": "Y"}],
        "tolerations": [],
    }
    assert base["a"] == {"b": 1, "c": 2}


def test_another_source_replaces_a_volumes_and_the_same_one_is_merged() -> None:
    base = {"volumes": [{"name": "home", "emptyDir": {}}, {"name": "shm", "emptyDir": {"medium": "Memory"}}]}
    claim = {"name": "home", "persistentVolumeClaim": {"claimName": "cache"}}
    over = {"volumes": [claim, {"name": "shm", "emptyDir": {"sizeLimit": "8Gi"}}]}
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}
    assert merge(base, over) == {"volumes": [claim, shm]}


@pytest.mark.parametrize(
    "variable",
    [
        {"name": "TOKEN", "value": "t"},
        {"name": "TOKEN", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ],
)
def test_another_form_of_a_variable_replaces_the_operators(variable: dict[str, Any]) -> None:
    base = {"env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}
    assert merge(base, {"env": [variable]}) == {"env": [variable]}
    assert merge({"env": [{"name": "TOKEN", "value": "x"}]}, {"env": [variable]}) == {"env": [variable]}
