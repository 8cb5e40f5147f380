"""What the chart makes beside the operator: every pod restricted, every part switched on and off, one file to ship."""

from __future__ import annotations

import copy
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_render import CHART, EVERYTHING, only, render, run_helm

from deepcoder_contracts.api.sandboxpool import SandboxPoolSpec
from deepcoder_contracts.labels import HEAD, LABEL_ORDINAL, LABEL_POOL, LABEL_ROLE, LABEL_RUN, LABEL_STAGE
from deepcoder_operator.builders.pool import PoolIdentity, PoolSettings, build_pod_template
from deepcoder_operator.builders.trainer_pod import METRICS_PORT

ALL: dict[str, Any] = EVERYTHING | {
    "web": {"enabled": True, "tlsSecretName": "page-tls"},
    "caBundle": {"configMapName": "authorities", "key": "all.pem"},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "metrics": {
        **{k: {"enabled": True, "labels": {"release": "p"}} for k in ("serviceMonitor", "podMonitors", "alerts")},
        "dashboards": {"enabled": True, "annotations": {"grafana_folder": "DeepCoder"}},
    },
}


def pod_specs(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for o in objects:
        if o["kind"] == "Pod":
            yield o["metadata"]["name"], o["spec"]
        elif o["kind"] in ("Deployment", "Job"):
            yield o["metadata"]["name"], o["spec"]["template"]["spec"]


def named(objects: list[dict[str, Any]], kind: str) -> set[str]:
    return {o["metadata"]["name"].removeprefix("demo-deepcoder-operator") for o in objects if o["kind"] == kind}


def test_chart_with_everything_passes_lint(helm: str) -> None:
    done = run_helm(helm, "lint", "--strict", values=ALL)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("hooks", [False, True], ids=["installed", "hooks"])
def test_every_pod_is_restricted(helm: str, hooks: bool) -> None:
    found = dict(pod_specs(render(helm, ALL, hooks=hooks)))
    assert len(found) == 2
    for name, spec in found.items():
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["enableServiceLinks"] is False, name
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name


def test_page_is_reached_over_a_service_only_with_a_certificate(helm: str) -> None:
    without = render(helm, {"web": {"enabled": True}})
    assert "-web" in named(without, "Deployment")
    assert "-web" not in named(without, "Service")
    objects = render(helm, ALL | {"web": ALL["web"] | {"egress": [{"ports": [{"port": 443}]}]}})
    (service,) = [o for o in objects if o["kind"] == "Service" and o["metadata"]["name"].endswith("-web")]
    (container,) = only(objects, "Deployment", "-web")["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"page": 8090, "https": 8443, "metrics": 8091}, "loopback stays as it is"
    assert service["spec"]["ports"][0]["targetPort"] == "https"
    config = yaml.safe_load(only(objects, "ConfigMap", "-web")["data"]["config.yaml"])
    assert (config["port"], config["tlsPort"]) == (8090, 8443)
    policy = only(objects, "NetworkPolicy", "-web")["spec"]
    assert [rule["ports"][0]["port"] for rule in policy["ingress"]] == [8443, 8091]
    assert (policy["policyTypes"], policy["egress"]) == (["Ingress", "Egress"], [{"ports": [{"port": 443}]}])
    assert "-web" not in named(render(helm), "Deployment")


def test_page_may_read_runs_pools_and_secrets_by_name_and_nothing_else(helm: str) -> None:
    objects = render(helm, {"web": {"enabled": True}})
    rules = only(objects, "ClusterRole", "-web")["rules"]
    granted = {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
    assert granted == {
        ("deepcoderruns", "list"), ("deepcoderruns", "watch"), ("sandboxpools", "get"), ("secrets", "get"),
        ("tokenreviews", "create"), ("subjectaccessreviews", "create"),
    }  # fmt: skip


def test_page_of_named_namespaces_reads_in_these_alone(helm: str) -> None:
    objects = render(helm, {"web": {"enabled": True}, "watchNamespaces": ["ml", "rl"]})
    (cluster,) = [o for o in objects if o["kind"] == "ClusterRole"]
    assert {r for rule in cluster["rules"] for r in rule["resources"]} == {"tokenreviews", "subjectaccessreviews"}
    roles = [o for o in objects if o["kind"] == "Role" and o["metadata"]["name"].endswith("-web")]
    assert {o["metadata"]["namespace"] for o in roles} == {"ml", "rl"}


def test_teams_whose_releases_have_one_name_install_them_beside_each_other(helm: str) -> None:
    """Helm refuses an object of the whole cluster that another release has."""
    values = {"web": {"enabled": True}, "watchNamespaces": ["red"], "crds": {"install": False}}

    def of_the_cluster(namespace: str) -> set[tuple[str, str]]:
        done = subprocess.run(
            [helm, "template", "demo", str(CHART), "--namespace", namespace, "--values", "-"],
            input=yaml.safe_dump(values), capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        objects = [o for o in yaml.load_all(done.stdout, yaml.CSafeLoader) if o and "namespace" not in o["metadata"]]
        (binding,) = [o for o in objects if o["kind"] == "ClusterRoleBinding"]
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in {
            (o["kind"], o["metadata"]["name"]) for o in objects
        }
        return {(o["kind"], o["metadata"]["name"]) for o in objects}

    assert len(of_the_cluster("red")) == 2
    assert not of_the_cluster("red") & of_the_cluster("blue")


def test_pods_say_what_they_are_by_a_label_that_no_value_changes_and_no_selector_has(helm: str) -> None:
    """The command line finds them by it. A selector of a Deployment that is installed can never change."""
    label = "deepcoder.dev/component"
    values = {"nameOverride": "x", "podLabels": {label: "other", "team": "rl"}, "web": {"enabled": True}}
    found = {}
    for deployment in (o for o in render(helm, values) if o["kind"] == "Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert labels["team"] == "rl"
        selected = deployment["spec"]["selector"]["matchLabels"]
        assert set(selected) == {"app.kubernetes.io/name", "app.kubernetes.io/instance"}
        found[selected["app.kubernetes.io/name"]] = labels[label]
    assert found == {"x": "operator", "x-web": "dashboard"}


def test_authorities_of_ones_own_reach_operator_and_page(helm: str) -> None:
    for name, spec in pod_specs(render(helm, ALL)):
        (container,) = spec["containers"]
        environment = {e["name"]: e.get("value") for e in container["env"]}
        assert environment["AWS_CA_BUNDLE"] == environment["SSL_CERT_FILE"] == "/etc/deepcoder-ca/all.pem", name
        assert environment["HTTPS_PROXY"] == "http://proxy:3128", name
        assert {"name": "ca", "configMap": {"name": "authorities"}} in spec["volumes"], name
        assert "/etc/deepcoder-ca" in {m["mountPath"] for m in container["volumeMounts"]}, name


def test_replicas_are_spread_as_asked(helm: str) -> None:
    spec = only(render(helm, ALL), "Deployment", "operator")["spec"]["template"]["spec"]
    (constraint,) = spec["topologySpreadConstraints"]
    assert constraint["topologyKey"] == "topology.kubernetes.io/zone"
    assert constraint["labelSelector"]["matchLabels"]["app.kubernetes.io/instance"] == "demo"


def test_replicas_of_the_page_are_spread_and_evicted_one_at_a_time_as_the_operators_are(helm: str) -> None:
    values = ALL | {
        "web": ALL["web"] | {"replicas": 2},
        "priorityClassName": "high",
        "podDisruptionBudget": {"enabled": True},
    }
    objects = render(helm, values)
    template = only(objects, "Deployment", "-web")["spec"]["template"]
    spec, labels = template["spec"], template["metadata"]["labels"]
    assert spec["priorityClassName"] == "high"
    (constraint,) = spec["topologySpreadConstraints"]
    (term,) = spec["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    budget = only(objects, "PodDisruptionBudget", "-web")["spec"]
    for selector in (constraint["labelSelector"], term["podAffinityTerm"]["labelSelector"], budget["selector"]):
        assert selector["matchLabels"].items() <= labels.items()
        assert "-web" in selector["matchLabels"]["app.kubernetes.io/name"]
    single = render(helm, values | {"web": ALL["web"]})
    assert "-web" not in named(single, "PodDisruptionBudget"), "a single replica may be evicted"


def test_runs_are_let_go_before_anything_is_taken_away_unless_it_is_switched_off(helm: str) -> None:
    values = {"watchNamespaces": ["ml", "rl"]}
    installed, hooks = render(helm, values), render(helm, values, hooks=True)
    (job,) = [o for o in hooks if o["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"]
    pod = job["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == only(installed, "ServiceAccount")["metadata"]["name"], "the operator's"
    (config,) = [volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume]
    assert config == only(installed, "ConfigMap")["metadata"]["name"]
    assert job["metadata"]["namespace"] == "dc", "nothing is made in namespaces that may be gone"
    services = [o["spec"]["selector"] for o in installed if o["kind"] == "Service"]
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert not [s for s in services if s.items() <= labels.items()], "nobody takes it for the operator"
    kept = render(helm, {"uninstall": {"releaseRuns": False}}, hooks=True)
    assert {o["metadata"]["annotations"]["helm.sh/hook"] for o in kept} == {"test"}


def test_what_hooks_start_may_run_where_the_operator_may(helm: str) -> None:
    """Where every node is tainted a pod without the tolerations would wait until helm gives up."""
    (operator,) = [s for name, s in pod_specs(render(helm, ALL)) if not name.endswith("-web")]
    for name, spec in pod_specs(render(helm, ALL, hooks=True)):
        assert spec["tolerations"] == operator["tolerations"], name
        assert spec["nodeSelector"] == operator["nodeSelector"], name


def program_of(hooks: list[dict[str, Any]]) -> str:
    """The program that `helm test` runs."""
    (container,) = only(hooks, "Pod")["spec"]["containers"]
    return str(container["args"][0])


def test_helm_test_looks_at_the_page_where_there_is_one(helm: str) -> None:
    without = render(helm, hooks=True)
    assert "-web" not in program_of(without)
    assert not [o for o in without if o["kind"] == "Service"]
    plain = render(helm, {"web": {"enabled": True}}, hooks=True)
    page = only(render(helm, {"web": {"enabled": True}}), "Deployment", "-web")["spec"]["template"]
    (service,) = [o for o in plain if o["kind"] == "Service"]
    assert service["spec"]["selector"].items() <= page["metadata"]["labels"].items()
    assert f"http://{service['metadata']['name']}.dc.svc:8091/readyz" in program_of(plain)
    assert "/api/v1/runs" not in program_of(plain), "its pod's loopback alone is listened on"
    https = only(render(helm, ALL), "Service", "-web")
    assert f'"https://{https["metadata"]["name"]}.dc.svc/api/v1/runs": (401,)' in program_of(
        render(helm, ALL, hooks=True)
    )


def test_the_page_lets_helm_test_in_where_only_prometheus_is(helm: str) -> None:
    values = {"web": {"enabled": True}, "networkPolicy": {"monitoringNamespace": "monitoring"}}
    policy = only(render(helm, values), "NetworkPolicy", "-web")["spec"]
    pod = only(render(helm, values, hooks=True), "Pod")["metadata"]["labels"]
    allowed = [peer["podSelector"]["matchLabels"] for peer in policy["ingress"][-1]["from"] if "podSelector" in peer]
    assert [labels for labels in allowed if labels.items() <= pod.items()]


def relabelled(monitor: dict[str, Any], meta: dict[str, str]) -> dict[str, str]:
    """Labels of a target, as Prometheus makes them of a pod's by the relabelings of a monitor."""
    labels: dict[str, str] = {}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for rule in endpoint.get("relabelings", ()):
        value = ";".join(meta[name] for name in rule["sourceLabels"])
        found = re.fullmatch(rule.get("regex", "(.*)"), value)
        if found:
            labels[rule["targetLabel"]] = rule.get("replacement", "$1").replace("$1", found[1])
    return labels


def test_monitor_of_trainers_finds_the_port_that_the_trainer_serves(helm: str) -> None:
    monitor = only(render(helm, ALL), "PodMonitor", "-trainers")
    (role,) = [e for e in monitor["spec"]["selector"]["matchExpressions"] if e["key"] == LABEL_ROLE]
    assert role["values"] == [HEAD]
    pod = "__meta_kubernetes_pod_label_deepcoder_dev"
    meta = {
        "__meta_kubernetes_pod_ip": "10.1.2.3",
        f"{pod}_run": "demo",
        f"{pod}_stage": "short",
        f"{pod}_ordinal": "2",
    }
    target = {"__address__": f"10.1.2.3:{METRICS_PORT}", "run": "demo", "stage": "short", "attempt": "2"}
    assert relabelled(monitor, meta) == target
    six = relabelled(monitor, meta | {"__meta_kubernetes_pod_ip": "fd00::7"})
    assert six["__address__"] == f"[fd00::7]:{METRICS_PORT}"
    for label in (LABEL_RUN, LABEL_STAGE, LABEL_ORDINAL):
        assert f"__meta_kubernetes_pod_label_{re.sub(r'[./-]', '_', label)}" in meta, label


def test_monitor_of_judges_finds_the_port_that_their_pods_name(helm: str) -> None:
    monitor = only(render(helm, ALL), "PodMonitor", "-judges")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    settings = PoolSettings("sandbox", "deepcoder", {}, LABEL_RUN)
    pod = build_pod_template(PoolIdentity("ml", "judges", "uid"), SandboxPoolSpec(), settings)
    ports = {p["name"] for c in pod["spec"]["containers"] for p in c.get("ports", ())}
    assert endpoint["port"] in ports
    assert [e["key"] for e in monitor["spec"]["selector"]["matchExpressions"]] == [LABEL_POOL]
    assert pod["metadata"]["labels"][LABEL_POOL] == "judges"


@pytest.mark.parametrize("limit", [None, 0, 1_000_000])
def test_a_pod_that_has_our_labels_fills_no_prometheus(helm: str, limit: int | None) -> None:
    """Anybody may set them who may create a pod."""
    values = copy.deepcopy(ALL)
    if limit is not None:
        values["metrics"]["podMonitors"] |= {"sampleLimit": limit}
    monitors = [o["spec"] for o in render(helm, values) if o["kind"] == "PodMonitor"]
    assert len(monitors) == 3
    samples = {None: {"sampleLimit": 20_000}, 0: {}, 1_000_000: {"sampleLimit": 1_000_000}}[limit]
    for monitor in monitors:
        limits = {name: value for name, value in monitor.items() if name.endswith("Limit")}
        assert limits == {"labelLimit": 40, "labelValueLengthLimit": 512} | samples


def test_monitor_of_the_page_finds_its_pods(helm: str) -> None:
    objects = render(helm, ALL)
    monitor, page = only(objects, "PodMonitor", "-web"), only(objects, "Deployment", "-web")["spec"]["template"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= page["metadata"]["labels"].items()
    (container,) = page["spec"]["containers"]
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] in {p["name"] for p in container["ports"]}
    assert "-web" not in named(render(helm, ALL | {"web": {}}), "PodMonitor")


def test_chart_is_one_file_to_push(helm: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [helm, "package", str(CHART), "-d", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.glob("deepcoder-operator-*.tgz")
    with tarfile.open(package) as tar:
        names = set(tar.getnames())
    for wanted in (
        *("Chart.yaml", "README.md", "values.schema.json", "files/alerts.yaml", "templates/tests/reachable.yaml"),
        *("files/dashboards/deepcoder-runs.json", "files/crds/deepcoder.dev_deepcoderruns.yaml"),
    ):
        assert f"deepcoder-operator/{wanted}" in names
