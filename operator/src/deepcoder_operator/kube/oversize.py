"""Cuts from objects of our own kinds what is too large to be kept, before caches and workers hold it.

A template of a run or a pool may hold anything that fits into etcd, and 1.5 MiB of `[{}, {}, …]` take thirty megabytes
once parsed. Fifty such runs, which a team's quota may allow, would end the operator for all teams, and again after each
restart. So a spec beyond the bounds of `deepcoder_contracts.spec_bounds` is replaced by a mark that says why. Metadata
and status stay: the run or pool is refused with these words, and can be deleted. The bounds hold many times what a run
with its templates needs. Of the metadata of any kind, very many labels, owners or finalizers are cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from deepcoder_contracts.api.run import FINALIZER
from deepcoder_contracts.spec_bounds import excess_of

Object = dict[str, Any]

UNREAD = "unread"
"""Key, beside metadata and status, of why an object is kept without its spec. The API server never sends or sees it."""

_MOST_LABELS = 200
_MOST_OWNERS = 100
MOST_FINALIZERS = 100
"""Largest number of finalizers that are kept of an object. Read it before you write them."""

_OUR_LABELS = ("deepcoder.dev/", "ray.io/", "kueue.x-k8s.io/")


def why_unread(obj: Mapping[str, Any]) -> str | None:
    """Return why an object is kept without its spec. None if it is whole."""
    said = obj.get(UNREAD)
    return str(said) if said is not None else None


def without_excess(obj: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the object, with a mark in place of its spec if that is too large. Who manages it stays."""
    excess = excess_of(obj.get("spec"))
    if excess is None:
        return obj
    manager = obj["spec"].get("managedBy") if isinstance(obj["spec"], dict) else None
    rest = {k: v for k, v in obj.items() if k != "spec"}
    return rest | ({"spec": {"managedBy": manager[:253]}} if isinstance(manager, str) else {}) | {UNREAD: excess}


def modest(metadata: Object) -> Object:
    """Return metadata in which, of very many labels, owners or finalizers, those are left that the operator reads."""
    out = dict(metadata)
    labels = out.get("labels") or {}
    owners, holders = out.get("ownerReferences") or (), out.get("finalizers") or ()
    if len(labels) > _MOST_LABELS:
        ours = ((k, v) for k, v in labels.items() if k.startswith(_OUR_LABELS))
        out["labels"] = dict(islice(ours, _MOST_LABELS))
    if len(owners) > _MOST_OWNERS:
        out["ownerReferences"] = [owner for owner in owners if owner.get("controller")]
    if len(holders) > MOST_FINALIZERS:
        out["finalizers"] = sorted(holders, key=lambda holder: holder != FINALIZER)[:MOST_FINALIZERS]
    return out
