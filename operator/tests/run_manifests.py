"""A small run that is valid, to start from."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

TRAIN: dict[str, Any] = {"name": "short", "contextTokens": 64, "maxSteps": 20}
LONGER: dict[str, Any] = {"name": "long", "contextTokens": 128, "maxSteps": 10}
EVALUATE: dict[str, Any] = {
    "name": "final",
    "type": "Evaluate",
    "contextTokens": 256,
    "evaluate": {"datasets": [{"name": "held-back", "uri": "/data/held-back.jsonl"}], "targets": ["Base", "long"]},
}


def run_manifest(namespace: str, name: str = "demo", **spec: Any) -> dict[str, Any]:
    """A DeepCoderRun; `spec` replaces whole fields, None removes them."""
    base: dict[str, Any] = {
        "model": {"uri": "/models/demo"},
        "image": "trainer:1",
        "dataset": {"uri": "/data/train.jsonl"},
        "recipe": {"promptsPerStep": 8, "groupSize": 4},
        "stages": [TRAIN, LONGER, EVALUATE],
        "sandbox": {"template": {"maxReplicas": 2}},
        "checkpoint": {"s3": {"bucket": "deepcoder", "credentialsSecretRef": {"name": "s3"}}},
    }
    merged = {k: deepcopy(v) for k, v in (base | spec).items() if v is not None}
    return {
        "apiVersion": "deepcoder.dev/v1alpha1",
        "kind": "DeepCoderRun",
        "metadata": {"name": name, "namespace": namespace},
        "spec": merged,
    }
