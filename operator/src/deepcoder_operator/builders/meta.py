"""Metadata that everything made for a run has: names by intent, labels, and the run as its owner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepcoder_contracts.api.base import API_VERSION
from deepcoder_contracts.api.run import RESOURCE, DeepCoderRun
from deepcoder_operator.domain.names import run_labels

Object = dict[str, Any]


def owner_reference(run: DeepCoderRun) -> Object:
    """The run as controller: what it owns goes when it goes."""
    meta = run.metadata
    return {"apiVersion": API_VERSION, "kind": RESOURCE.kind, "name": meta.name, "uid": meta.uid, "controller": True}


def metadata(run: DeepCoderRun, name: str, labels: Mapping[str, str] | None = None) -> Object:
    """metadata of an object of the run."""
    return {
        "name": name,
        "namespace": run.metadata.namespace,
        "labels": run_labels(run.metadata.name, run.metadata.uid) | dict(labels or {}),
        "ownerReferences": [owner_reference(run)],
    }
