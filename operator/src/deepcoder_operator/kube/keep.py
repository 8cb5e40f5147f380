"""What is kept of an object in memory: what somebody reads, in as little room as that takes.

A thousand runs have some five thousand children. As the API server sends them, with managed fields, annotations and
whole pod templates, they would fill half a gigabyte; what passes read of them is a tenth of that. A cache therefore
keeps each object without the rest, and equal strings once. Whoever needs more of an object reads it live; whoever
reads another field of a cached object adds it here: the test of this module compares what is read of a kept object
with what is read of the whole one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from deepcoder_operator.kube.resources import PODS, RAYCLUSTERS, RAYJOBS, Resource

Object = dict[str, Any]

_IDENTITY = ("name", "namespace", "uid", "resourceVersion", "generation", "labels", "ownerReferences", "finalizers")
_TIMES = ("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds")
_LONGEST_SHARED = 64
"""Longer strings are hardly ever met twice."""


def kept(resource: Resource, obj: Mapping[str, Any]) -> Object:
    """The part of an object that is kept, a copy."""
    return _KEEP.get(resource, _custom_resource)(obj)


def _custom_resource(obj: Mapping[str, Any]) -> Object:
    """Ours, whose every field is read."""
    out: Object = {k: shared(v) for k, v in obj.items() if k != "metadata"}
    return out | {"metadata": _metadata(obj)}


def _rayjob(obj: Mapping[str, Any]) -> Object:
    return _head(obj) | {
        "spec": _only(obj.get("spec"), ("suspend",)),
        "status": _only(
            obj.get("status"),
            ("jobStatus", "jobDeploymentStatus", "reason", "message", "rayClusterName", "startTime", "endTime"),
        ),
    }


def _cluster(obj: Mapping[str, Any]) -> Object:
    return _head(obj) | {"status": _only(obj.get("status"), ("state", "reason"))}


def _pod(obj: Mapping[str, Any]) -> Object:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    containers = [_only(c, ("name", "resources")) for c in spec.get("containers") or ()]
    out = _only(status, ("phase", "reason", "message", "podIP", "conditions"))
    for kind in ("containerStatuses", "initContainerStatuses"):
        if status.get(kind):
            out[kind] = [_only(s, ("name", "state", "restartCount", "imageID")) for s in status[kind]]
    return _head(obj) | {
        "spec": _only(spec, ("nodeName", "nodeSelector")) | {"containers": containers},
        "status": out,
    }


_KEEP: Mapping[Resource, Callable[[Mapping[str, Any]], Object]] = {
    RAYJOBS: _rayjob,
    RAYCLUSTERS: _cluster,
    PODS: _pod,
}


def _head(obj: Mapping[str, Any]) -> Object:
    return _only(obj, ("apiVersion", "kind")) | {"metadata": _metadata(obj)}


def _metadata(obj: Mapping[str, Any]) -> Object:
    return _only(obj["metadata"], (*_IDENTITY, *_TIMES))


def _only(values: Mapping[str, Any] | None, fields: Iterable[str]) -> Object:
    return {f: shared(values[f]) for f in fields if f in values} if values else {}


def shared(value: Any) -> Any:
    """A copy of a JSON value in which keys and short strings are the same objects wherever they are equal."""
    if isinstance(value, str):
        return sys.intern(value) if len(value) <= _LONGEST_SHARED else value
    if isinstance(value, dict):
        return {sys.intern(k): shared(v) for k, v in value.items()}
    if isinstance(value, list):
        return [shared(v) for v in value]
    return value
