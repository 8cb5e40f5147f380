"""What the chart makes beside the operator: every pod restricted, every part switched on and off, one file to ship."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_chart_templates import CHART, EVERYTHING, only, render, run_helm

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
    assert "-web" in named(render(helm, ALL), "Service")
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


def test_runs_are_let_go_after_the_operator_is_gone_unless_it_is_switched_off(helm: str) -> None:
    hooks = [o for o in render(helm, hooks=True) if o["metadata"]["annotations"]["helm.sh/hook"] == "post-delete"]
    order = sorted(hooks, key=lambda o: int(o["metadata"]["annotations"]["helm.sh/hook-weight"]))
    assert [o["kind"] for o in order][-1] == "Job", "its rights are there before it"
    assert {o["kind"] for o in order} == {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ConfigMap", "Job"}
    kept = render(helm, {"uninstall": {"releaseRuns": False}}, hooks=True)
    assert {o["metadata"]["annotations"]["helm.sh/hook"] for o in kept} == {"test"}


def test_chart_is_one_file_to_push(helm: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [helm, "package", str(CHART), "-d", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.glob("deepcoder-operator-*.tgz")
    with tarfile.open(package) as tar:
        names = set(tar.getnames())
    for wanted in ("Chart.yaml", "values.schema.json", "files/alerts.yaml", "files/dashboards/deepcoder-runs.json",
                   "templates/tests/reachable.yaml", "files/crds/deepcoder.dev_deepcoderruns.yaml"):  # fmt: skip
        assert f"deepcoder-operator/{wanted}" in names
