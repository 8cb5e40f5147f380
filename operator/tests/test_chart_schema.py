"""What the chart's values.schema.json refuses, names and lets through: a wrong value costs no half installation."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from chart_render import CHART, EVERYTHING, only, render, run_helm


@pytest.mark.parametrize(
    "values",
    [
        {"replicas": 0},
        {"images": {"operater": "x"}},
        {"progress": {"port": "8443"}},
        {"prices": [{"nodeSelector": {"gpu": "h100"}}]},
        {"prices": [{"perGpuHour": -1}]},
        {"s3": {"allowedEndpoints": ["minio:9000"]}},
        {"watchNamespaces": ["ml", "ml"]},
        {"watchNamespaces": ["Ml"]},
        {"networkPolicy": {"monitoringNamespace": "Mon_it"}},
        {"kuberay": {"namespace": "https://ray"}},
        {"logLevel": "loud"},
        {"imagePullSecrets": ["registry"]},
        {"podLabels": {"x": 1}},
        {"fullnameOverride": "DeepCoder"},
        {"fullnameOverride": "7b"},
        {"nameOverride": "deep.coder"},
        {"logLevel": None},
        {"progress": {"port": None}},
        {"metrics": {"port": None}},
        {"kuberay": {"namespace": None}},
    ],
    ids=lambda v: json.dumps(v),
)
def test_schema_refuses_what_the_chart_does_not_know(helm: str, values: dict[str, Any]) -> None:
    done = run_helm(helm, "template", "demo", values=values)
    assert done.returncode != 0
    assert next(iter(values)) in done.stderr


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"tolerations": [{"key": "gpu", "efect": "NoSchedule"}]}, "efect"),
        ({"tolerations": [{"key": "gpu", "operator": "Exist"}]}, "operator"),
        ({"web": {"egress": [{"prots": [{"port": 443}]}]}}, "prots"),
        ({"web": {"egress": [{"to": [{"namespaceSelector": {"matchLabel": {}}}]}]}}, "matchLabel"),
        ({"web": {"egress": [{"to": [{"ipBlock": {"except": []}}]}]}}, "cidr"),
        ({"web": {"resources": {"reqests": {}}}}, "reqests"),
        (
            {"topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}}
            ]},
            "labelSelector",
        ),
        ({"affinity": {"nodeAfinity": {}}}, "nodeAfinity"),
        ({"env": [{"name": "X", "valueFrom": {"secretRef": {}}}]}, "secretRef"),
        ({"images": {"operator": "registry.example/operator:"}}, "registry.example/operator:"),
        ({"images": {"trainer": "registry.example/trainer@sha256:12"}}, "registry.example/trainer@sha256:12"),
        ({"images": {"sandbox": "https://registry.example/sandbox"}}, "https://registry.example/sandbox"),
    ],
    ids=lambda v: json.dumps(v) if isinstance(v, dict) else "",
)  # fmt: skip
def test_schema_names_the_key_that_is_wrong_within_a_value(helm: str, values: dict[str, Any], named: str) -> None:
    """What would be dropped without a word, or refused by the API server halfway through an installation."""
    done = run_helm(helm, "template", "demo", values=values)
    assert done.returncode != 0
    assert named in done.stderr


def test_schema_lets_through_what_kubernetes_knows(helm: str) -> None:
    values: dict[str, Any] = {
        "tolerations": [{"key": "gpu", "operator": "Equal", "value": "no", "effect": "NoExecute",
                         "tolerationSeconds": 9},
                        {"operator": "Exists"}],
        "web": {"enabled": True, "egress": [
            {"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
                    {"namespaceSelector": {"matchExpressions": [{"key": "x", "operator": "In", "values": ["team"]}]},
                     "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}],
             "ports": [{"port": 53, "protocol": "UDP"}, {"port": "https"}, {"port": 9000, "endPort": 9010}]},
            {}]},
        "images": {"operator": "[fd00::1]:5000/deep/coder__op:v1.2_x@sha256:" + "a" * 64, "trainer": "localhost:5000/t",
                   "sandbox": "s"},
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}},
        "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
    }  # fmt: skip
    policy = only(render(helm, values), "NetworkPolicy", "-web")["spec"]
    assert policy["egress"] == values["web"]["egress"]


def test_every_value_is_in_the_schema_and_explained(helm: str) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    text = (CHART / "values.yaml").read_text()

    def walk(values: dict[str, Any], node: dict[str, Any], path: str) -> None:
        assert node.get("additionalProperties") is False, path
        assert set(values) <= set(node["properties"]), path
        for name, value in values.items():
            inner = node["properties"][name]
            assert inner.get("description"), f"{path}.{name}"
            if isinstance(value, dict) and "properties" in inner and name != "resources":
                walk(value, inner, f"{path}.{name}")

    walk(yaml.safe_load(text), schema, "")
    lines = text.splitlines()
    for before, line in itertools.pairwise(lines):
        name, colon, value = line.strip().partition(":")
        if colon and name.isidentifier() and value.strip() and name not in ("requests", "limits"):
            assert before.strip().startswith("#"), f"values.yaml: {name} has no comment"


def texts(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Names and label values of an object, wherever they are, with their paths."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("name", "serviceAccountName", "labels", "matchLabels") and not isinstance(inner, dict):
                yield f"{path}.{key}", inner
            elif key in ("labels", "matchLabels"):
                yield from ((f"{path}.{key}.{k}", v) for k, v in inner.items())
            yield from texts(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from texts(inner, f"{path}[{i}]")


@pytest.mark.parametrize(
    "values",
    [{key: name} for key in ("nameOverride", "fullnameOverride") for name in ("null", "true", "no")]
    + [{"nameOverride": "123"}, {"serviceAccount": {"create": False, "name": "123"}}],
    ids=lambda v: json.dumps(v),
)
def test_names_that_yaml_takes_for_something_else_stay_texts(helm: str, values: dict[str, Any]) -> None:
    everything = EVERYTHING | values | {"web": {"enabled": True}, "watchNamespaces": ["ml"]}
    objects = [*render(helm, everything), *render(helm, everything, hooks=True)]
    found = [pair for o in objects for pair in texts(o, o["kind"])]
    assert len(found) > 100
    assert [(path, text) for path, text in found if not isinstance(text, str)] == []
    files = [o["data"]["config.yaml"] for o in objects if o["kind"] == "ConfigMap" and "config.yaml" in o["data"]]
    config = next(c for c in map(yaml.safe_load, files) if "lease" in c)
    assert isinstance(config["lease"], str)
    assert all(isinstance(label, str) for label in config["podLabels"].values())


@pytest.mark.parametrize("release", ["1st", "my.release"])
def test_release_whose_name_no_service_may_have_is_refused_unless_another_is_given(helm: str, release: str) -> None:
    refused = run_helm(helm, "template", release)
    assert refused.returncode != 0
    assert f"would be named {release}-deepcoder-operator" in refused.stderr
    assert "set fullnameOverride" in refused.stderr
    taken = run_helm(helm, "template", release, values={"fullnameOverride": "first"})
    assert taken.returncode == 0, taken.stderr
