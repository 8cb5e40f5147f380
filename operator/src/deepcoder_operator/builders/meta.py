"""Metadata of everything made for a run: names after the intent, labels, and the run as owner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepcoder_contracts.api.base import API_VERSION
from deepcoder_contracts.api.run import RESOURCE, DeepCoderRun
from deepcoder_operator.domain.names import run_labels

Object = dict[str, Any]


def owner_reference(run: DeepCoderRun) -> Object:
    """Build the owner reference to the run as controller, so that its objects are deleted with it."""
    meta = run.metadata
    return {"apiVersion": API_VERSION, "kind": RESOURCE.kind, "name": meta.name, "uid": meta.uid, "controller": True}


def metadata(run: DeepCoderRun, name: str, labels: Mapping[str, str] | None = None) -> Object:
    """Build the metadata of an object of the run."""
    return {
        "name": name,
        "namespace": run.metadata.namespace,
        "labels": run_labels(run.metadata.name, run.metadata.uid) | dict(labels or {}),
        "ownerReferences": [owner_reference(run)],
    }
