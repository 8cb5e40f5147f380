"""The chart, rendered by helm: least rights, restricted pods, a schema that refuses what it does not know."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
import yaml
from chart_render import CHART, EVERYTHING, only, render, rules, run_helm

from deepcoder_operator.config import OperatorConfig


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_chart_passes_lint(helm: str, values: dict[str, Any]) -> None:
    done = run_helm(helm, "lint", "--strict", values=values)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_no_right_is_a_wildcard(helm: str, values: dict[str, Any]) -> None:
    for _, rule in rules(render(helm, values)):
        for part in ("apiGroups", "resources", "verbs"):
            assert "*" not in rule[part]


def test_secrets_are_read_by_name_and_never_listed_or_deleted(helm: str) -> None:
    for role, rule in rules(render(helm)):
        if "secrets" not in rule["resources"]:
            continue
        if role["kind"] == "ClusterRole":
            assert set(rule["verbs"]) <= {"get", "create"}
        else:
            assert rule["verbs"] == ["create"] or rule["resourceNames"] == ["demo-deepcoder-operator-progress-tls"]
            assert set(rule["verbs"]) <= {"get", "patch", "create"}


def test_operator_never_writes_specs_of_pods_or_of_rayjobs(helm: str) -> None:
    granted = {r: set(rule["verbs"]) for _, rule in rules(render(helm)) for r in rule["resources"]}
    for resource in ("pods", "rayjobs"):
        assert not granted[resource] & {"update", "patch", "deletecollection"}


def test_rights_on_our_kinds_are_added_to_the_roles_of_people(helm: str) -> None:
    objects = render(helm)
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    view, edit = (only(objects, "ClusterRole", s)["metadata"]["labels"] for s in ("-view", "-edit"))
    assert {k.removeprefix(prefix) for k in view if k.startswith(prefix)} == {"view", "edit", "admin"}
    assert {k.removeprefix(prefix) for k in edit if k.startswith(prefix)} == {"edit", "admin"}
    none = render(helm, {"rbac": {"aggregate": False, "create": False}})
    assert not [o for o in none if o["kind"] in ("Role", "ClusterRole")]


def test_named_namespaces_need_no_right_beyond_them(helm: str) -> None:
    objects = render(helm, EVERYTHING | {"watchNamespaces": ["ml", "rl"]})
    assert not [o for o in objects if o["kind"].startswith("ClusterRole")]
    everywhere = {r: set(rule["verbs"]) for o, rule in rules(render(helm)) if o["kind"] == "ClusterRole"
                  and not o["metadata"]["name"].endswith(("-view", "-edit")) for r in rule["resources"]}  # fmt: skip
    for namespace in ("ml", "rl"):
        here = [o for o in objects if o["metadata"].get("namespace") == namespace
                and not o["metadata"]["name"].endswith(("-view", "-edit"))]  # fmt: skip
        assert [o["kind"] for o in here] == ["Role", "RoleBinding"]
        granted = {r: set(rule["verbs"]) for _, rule in rules(here) for r in rule["resources"]}
        assert granted == {r: verbs for r, verbs in everywhere.items() if r != "tokenreviews"}
        assert here[1]["roleRef"]["name"] == here[0]["metadata"]["name"]
        assert here[1]["subjects"][0]["namespace"] == "dc"
    config = OperatorConfig.model_validate(yaml.safe_load(only(objects, "ConfigMap")["data"]["config.yaml"]))
    assert (config.watch_namespaces, config.progress.authentication) == (["ml", "rl"], "JWKS")


def test_pod_meets_the_restricted_standard(helm: str) -> None:
    pod = only(render(helm), "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert not any("hostPath" in v for v in pod["volumes"])


def test_replicas_are_kept_apart_and_never_all_taken_at_once(helm: str) -> None:
    """That one of them works alone is in the tests of the lease."""
    objects = render(helm)
    spec = only(objects, "Deployment")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 1
    labels = spec["template"]["metadata"]["labels"].items()
    (term,) = spec["template"]["spec"]["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    assert term["podAffinityTerm"]["labelSelector"]["matchLabels"].items() <= labels
    budget = only(objects, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"]["matchLabels"].items() <= labels


def test_single_replica_holds_up_no_eviction(helm: str) -> None:
    assert "PodDisruptionBudget" not in {o["kind"] for o in render(helm, {"replicas": 1})}


def test_replicas_that_do_not_work_hold_up_no_drain_of_their_nodes(helm: str) -> None:
    """Two that crash, for want of a right say, would leave no disruption to allow, for as long as they do."""
    objects = render(helm, {"web": {"enabled": True, "replicas": 2}})
    budgets = [o["spec"] for o in objects if o["kind"] == "PodDisruptionBudget"]
    assert [b["unhealthyPodEvictionPolicy"] for b in budgets] == ["AlwaysAllow"] * 2


def test_affinity_of_ones_own_replaces_the_chart_s(helm: str) -> None:
    spec = only(render(helm, {"affinity": {"nodeAffinity": {"x": 1}}}), "Deployment")["spec"]["template"]["spec"]
    assert spec["affinity"] == {"nodeAffinity": {"x": 1}}


def test_replicas_may_write_no_other_lease_than_their_own(helm: str) -> None:
    granted = [(role["kind"], rule) for role, rule in rules(render(helm)) if "leases" in rule["resources"]]
    assert {kind for kind, _ in granted} == {"Role"}
    assert {v for _, rule in granted for v in rule["verbs"]} == {"get", "patch", "create"}
    for _, rule in granted:
        assert rule["verbs"] == ["create"] or rule["resourceNames"] == ["demo-deepcoder-operator"]


def test_cluster_may_choose_the_user(helm: str) -> None:
    """For the pods of runs and pools, too: where it does, as OpenShift, it admits none that names one."""
    objects = render(helm, {"runAsUser": None})
    assert "runAsUser" not in only(objects, "Deployment")["spec"]["template"]["spec"]["securityContext"]
    read = [yaml.safe_load(only(o, "ConfigMap")["data"]["config.yaml"]) for o in (objects, render(helm))]
    assert [OperatorConfig.model_validate(config).fixed_user for config in read] == [False, True]


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_operator_accepts_the_configuration_that_the_chart_writes(helm: str, values: dict[str, Any]) -> None:
    objects = render(helm, values)
    config = OperatorConfig.model_validate(yaml.safe_load(only(objects, "ConfigMap")["data"]["config.yaml"]))
    service = only(objects, "Service", "-progress")
    assert config.progress.host == f"{service['metadata']['name']}.dc.svc"
    assert config.namespace == "dc"
    assert config.lease == "demo-deepcoder-operator"
    labels = only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert config.pod_labels.items() <= labels.items()
    assert len(config.prices) == len(values.get("prices", []))
    ports = {p["name"]: p["containerPort"] for p in _container(objects)["ports"]}
    assert ports == {"progress": config.progress.port, "metrics": config.health_port}


@pytest.mark.parametrize("values", [{"prices": None}, {"s3": {"allowedEndpoints": None}}], ids=json.dumps)
def test_list_whose_entries_are_all_commented_out_is_empty(helm: str, values: dict[str, Any]) -> None:
    """`prices:` with only comments below it is null, which no program would accept as its configuration."""
    objects = render(helm, values | {"web": {"enabled": True}})
    config = OperatorConfig.model_validate(
        yaml.safe_load(only(objects, "ConfigMap", "operator")["data"]["config.yaml"])
    )
    assert (config.prices, config.storage.allowed_endpoints) == ([], [])
    page = yaml.safe_load(only(objects, "ConfigMap", "-web")["data"]["config.yaml"])
    assert page["allowedEndpoints"] == []


def test_changed_configuration_restarts_the_operator(helm: str) -> None:
    def checksum(values: dict[str, Any]) -> str:
        template = only(render(helm, values), "Deployment")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum({}) != checksum({"prices": [{"perGpuHour": 1}]})
    assert checksum({}) == checksum({"podLabels": {"team": "rl"}})


def test_services_select_the_pods_of_this_release_only(helm: str) -> None:
    objects = render(helm, EVERYTHING)
    labels = only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    for service in (o for o in objects if o["kind"] == "Service"):
        assert service["spec"]["selector"].items() <= labels.items()
        assert service["spec"]["selector"]["app.kubernetes.io/instance"] == "demo"


def test_only_pods_of_runs_reach_the_progress_port(helm: str) -> None:
    progress, metrics = only(render(helm, EVERYTHING), "NetworkPolicy")["spec"]["ingress"]
    assert progress["from"][0]["podSelector"]["matchExpressions"] == [
        {"key": "deepcoder.dev/run", "operator": "Exists"}
    ]
    assert metrics["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}


def test_optional_objects_are_left_out_by_default(helm: str) -> None:
    kinds = {o["kind"] for o in render(helm)}
    assert not kinds & {"ServiceMonitor", "PrometheusRule"}
    assert {"ServiceMonitor", "PrometheusRule"} <= {o["kind"] for o in render(helm, EVERYTHING)}


@pytest.mark.parametrize(("replicas", "told"), [(1, False), (2, True)])
def test_missing_standby_is_told_where_there_is_to_be_one(helm: str, replicas: int, told: bool) -> None:
    rule = only(render(helm, EVERYTHING | {"replicas": replicas}), "PrometheusRule")
    names = {r.get("alert") for group in rule["spec"]["groups"] for r in group["rules"]}
    assert ("DeepCoderNoStandby" in names) is told
    assert "DeepCoderOperatorDown" in names


@pytest.mark.parametrize(("said", "page"), [("", "docs/alerts.md"), ("https://docs.test/alerts/",) * 2])
def test_each_alert_says_where_to_read_what_to_do(helm: str, said: str, page: str) -> None:
    metrics = {"alerts": {"enabled": True, "runbooks": said}}
    rule = only(render(helm, {"metrics": metrics, "networkPolicy": {"monitoringNamespace": "m"}}), "PrometheusRule")
    rules = [r for group in rule["spec"]["groups"] for r in group["rules"]]
    alerts = [r for r in rules if "alert" in r]
    assert {tuple(sorted(r)) for r in rules if "alert" not in r} == {("expr", "labels", "record")}, "and no more"
    assert {a["annotations"]["runbook_url"] for a in alerts} == {f"{page}#{a['alert'].lower()}" for a in alerts}
    assert all("{{" in a["annotations"]["summary"] for a in alerts if a["alert"] == "DeepCoderPoolNotReady")


def test_release_named_deepcoder_does_not_repeat_itself(helm: str) -> None:
    done = subprocess.run([helm, "template", "deepcoder", str(CHART)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    names = {
        d["metadata"]["name"] for d in yaml.load_all(done.stdout, yaml.CSafeLoader) if d and d["kind"] == "Deployment"
    }
    assert names == {"deepcoder-operator"}


def test_a_name_that_looks_like_a_number_stays_a_name(helm: str) -> None:
    """Kubernetes allows both as a namespace; as a number it would be refused, by the API server or by the operator."""
    values = {
        "fullnameOverride": "seven-deepcoder-operator",
        "kuberay": {"namespace": "12"},
        "networkPolicy": {"monitoringNamespace": "1e3"},
        "priorityClassName": "100",
        "watchNamespaces": ["2025"],
        "web": {"enabled": True},
    }
    done = subprocess.run(
        [helm, "template", "7", str(CHART), "--namespace", "2026", "--values", "-"],
        input=json.dumps(values), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    objects = [d for d in yaml.load_all(done.stdout, yaml.CSafeLoader) if d]
    for found in objects:
        labels = found["metadata"].get("labels") or {}
        assert isinstance(found["metadata"].get("namespace", ""), str), found["kind"]
        assert all(isinstance(value, str) for value in labels.values()), found["kind"]
    pods = [o["spec"]["template"]["spec"] for o in objects if o["kind"] == "Deployment"]
    assert [pod["priorityClassName"] for pod in pods] == ["100", "100"]
    config = only(objects, "ConfigMap", "operator")["data"]["config.yaml"]
    read = OperatorConfig.model_validate(yaml.safe_load(config))
    assert (read.namespace, read.kuberay_namespace, read.monitoring_namespace) == ("2026", "12", "1e3")


def test_labels_that_another_chart_sets_to_null_are_none(helm: str) -> None:
    objects = render(helm, {"podLabels": None, "web": {"enabled": True}})
    assert [o["kind"] for o in objects].count("Deployment") == 2


def test_user_of_ten_digits_is_a_whole_number(helm: str) -> None:
    """OpenShift gives a namespace such a range; helm reads the value as a float and would write 1.00067e+09."""
    for pod in (o for o in render(helm, {"runAsUser": 1000670000}) if o["kind"] == "Deployment"):
        user = pod["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
        assert (user, type(user)) == (1000670000, int)


def test_chosen_images_are_used_as_they_are(helm: str) -> None:
    digest = "sha256:" + "1" * 64
    objects = render(helm, {"images": {"operator": f"r/op@{digest}", "trainer": "r/t:2", "sandbox": "r/s:3"}})
    assert _container(objects)["image"] == f"r/op@{digest}"
    config = yaml.safe_load(only(objects, "ConfigMap")["data"]["config.yaml"])
    assert config["images"] == {"trainer": "r/t:2", "sandbox": "r/s:3"}


def test_crds_are_those_of_the_repository_and_stay_when_the_chart_goes(helm: str) -> None:
    rendered = {o["metadata"]["name"]: o for o in render(helm) if o["kind"] == "CustomResourceDefinition"}
    generated = [yaml.load(p.read_text(), yaml.CSafeLoader) for p in sorted((CHART.parents[1] / "crds").glob("*.yaml"))]
    assert generated
    assert set(rendered) == {c["metadata"]["name"] for c in generated}
    for crd in generated:
        ours = rendered[crd["metadata"]["name"]]
        assert ours["spec"] == crd["spec"]
        assert ours["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


@pytest.mark.parametrize(
    ("crds", "fate"),
    [({}, "The CRDs stay"), ({"keep": False}, "The CRDs go"), ({"install": False, "keep": False}, "The CRDs stay")],
    ids=["kept", "let go", "not ours"],
)
def test_notes_say_what_uninstalling_does_to_runs_and_what_to_do_before(
    helm: str, crds: dict[str, Any], fate: str
) -> None:
    done = run_helm(helm, "install", "demo", "--dry-run=client", values={"crds": crds})
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert fate in notes
    assert "kubectl delete dcr --all" in notes


def test_crds_can_be_left_out_or_let_go(helm: str) -> None:
    assert not [o for o in render(helm, {"crds": {"install": False}}) if o["kind"] == "CustomResourceDefinition"]
    for crd in render(helm, {"crds": {"keep": False}}):
        assert "helm.sh/resource-policy" not in crd["metadata"].get("annotations", {})


def peers(policy: dict[str, Any], port: int) -> list[dict[str, Any]]:
    """Who is let in at a port; raises where it is everybody."""
    (rule,) = [r for r in policy["spec"]["ingress"] if port in [p["port"] for p in r["ports"]]]
    found: list[dict[str, Any]] = rule["from"]
    assert found, "an empty list is everybody"
    return found


@pytest.mark.parametrize("named", [False, True], ids=["default", "named"])
def test_metrics_are_open_to_the_namespace_that_is_named_alone_and_by_default_to_none(helm: str, named: bool) -> None:
    values: dict[str, Any] = {"web": {"enabled": True}}
    if named:
        values["networkPolicy"] = {"monitoringNamespace": "monitoring"}
    objects = render(helm, values)
    for policy, port in (("operator", 8080), ("-web", 8091)):
        let_in = peers(only(objects, "NetworkPolicy", policy), port)
        namespaces = [p["namespaceSelector"]["matchLabels"] for p in let_in if "namespaceSelector" in p]
        assert namespaces == ([{"kubernetes.io/metadata.name": "monitoring"}] if named else [])
        (test,) = [p["podSelector"]["matchLabels"] for p in let_in if "namespaceSelector" not in p]
        assert test["app.kubernetes.io/component"] == "test", "and what helm test starts"


@pytest.mark.parametrize("monitor", ["serviceMonitor", "podMonitors", "alerts"])
def test_monitor_whose_prometheus_would_be_kept_out_is_refused_with_the_mend(helm: str, monitor: str) -> None:
    """And alerts: that nobody leads is told of for ever where nothing is seen."""
    done = run_helm(helm, "template", "demo", values={"metrics": {monitor: {"enabled": True}}})
    assert done.returncode != 0
    assert f"metrics.{monitor}.enabled is true" in done.stderr
    assert "name its namespace in networkPolicy.monitoringNamespace" in done.stderr


def test_alerts_and_the_operators_monitor_name_no_namespace_where_no_policy_keeps_anybody_out(helm: str) -> None:
    metrics = {"serviceMonitor": {"enabled": True}, "alerts": {"enabled": True}}
    objects = render(helm, {"metrics": metrics, "networkPolicy": {"enabled": False}})
    assert {"PrometheusRule", "ServiceMonitor"} <= {o["kind"] for o in objects}


def test_values_of_an_older_release_that_are_used_again_render(helm: str) -> None:
    """`helm upgrade --reuse-values` takes the old release's values whole: what has come since is not there at all."""
    newer = (
        "replicas",
        "watchNamespaces",
        "podDisruptionBudget",
        "web",
        "caBundle",
        "uninstall",
        "topologySpreadConstraints",
    )
    missing: dict[str, Any] = dict.fromkeys(newer)
    missing["metrics"] = {"alerts": None, "podMonitors": None, "dashboards": None}
    objects = render(helm, missing)
    config = OperatorConfig.model_validate(yaml.safe_load(only(objects, "ConfigMap")["data"]["config.yaml"]))
    assert config.watch_namespaces == []
    assert not {"PrometheusRule", "PodDisruptionBudget"} & {o["kind"] for o in objects}


def _container(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (container,) = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    result: dict[str, Any] = container
    return result
