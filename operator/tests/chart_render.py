"""The chart as helm renders it, with values of a test's, and what is looked for in its objects."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "helm" / "deepcoder-operator"
EVERYTHING: dict[str, Any] = {
    "imagePullSecrets": [{"name": "registry"}],
    "prices": [{"nodeSelector": {"gpu": "h100"}, "perGpuHour": 2.5}],
    "s3": {"allowedEndpoints": ["https://minio.storage.svc:9000"]},
    "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "alerts": {"enabled": True, "labels": {"release": "prometheus"}},
    },
    "networkPolicy": {"monitoringNamespace": "monitoring"},
    "replicas": 3,
    "podDisruptionBudget": {"enabled": False},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "control", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "system-cluster-critical",
    "podLabels": {"team": "rl"},
    "podAnnotations": {"note": "x"},
    "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "serviceAccount": {"annotations": {"cloud/role": "x"}},
}
"""Values with which everything optional is made."""


def run_helm(helm: str, *arguments: str, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [helm, *arguments, str(CHART), "--namespace", "dc", "--values", "-"],
        input=yaml.safe_dump(values or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@cache
def _rendered(helm: str, values: str) -> str:
    done = run_helm(helm, "template", "demo", values=json.loads(values))
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(helm: str, values: dict[str, Any] | None = None, *, hooks: bool = False) -> list[dict[str, Any]]:
    """What is installed, with `hooks` what is made for a moment when the release is tested or uninstalled."""
    objects = [doc for doc in yaml.load_all(_rendered(helm, json.dumps(values or {})), yaml.CSafeLoader) if doc]
    return [o for o in objects if ("helm.sh/hook" in (o["metadata"].get("annotations") or {})) is hooks]


def only(objects: list[dict[str, Any]], kind: str, suffix: str = "") -> dict[str, Any]:
    (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"].endswith(suffix)]
    return found


def rules(objects: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for obj in objects:
        if obj["kind"] in ("Role", "ClusterRole"):
            for rule in obj["rules"]:
                yield obj, rule
