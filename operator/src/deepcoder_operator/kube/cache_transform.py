"""Reduces objects to the fields that are read, to save memory in the caches.

A thousand runs have about five thousand child objects. As the API server sends them, with managed fields, annotations
and whole pod templates, they would take half a gigabyte. Passes read a tenth of that. So the caches keep only these
fields, and equal strings once. Read an object live if you need more of it. If you read another field of a cached
object, add it here: this module's test compares what is read of a kept object with what is read of the whole one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from deepcoder_operator.domain.world import REPLICA_FAILURE
from deepcoder_operator.kube.oversize import modest, without_excess
from deepcoder_operator.kube.resources import PODS, RAYCLUSTERS, RAYJOBS, Resource

Object = dict[str, Any]

_IDENTITY = ("name", "namespace", "uid", "resourceVersion", "generation", "labels", "ownerReferences", "finalizers")
_TIMES = ("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds")
_LONGEST_SHARED = 64
"""Longest string, in characters, that is stored once for all objects. Longer ones hardly ever repeat."""


def trim_for_cache(resource: Resource, obj: Mapping[str, Any], before: Object | None = None) -> Object:
    """Return a copy of the part of an object that is cached.

    `before` is the cached part of the object's earlier state. An equal spec is shared with it.
    """
    keep = _KEEP.get(resource)
    return keep(obj) if keep is not None else _custom_resource(obj, before)


def _custom_resource(obj: Mapping[str, Any], before: Object | None) -> Object:
    """Return one of our own objects, of which all fields are read. Its spec hardly ever changes, so it is shared.

    Specs are compared, not their generations: an upgraded CRD can serve another spec for the same generation. A spec
    that is too large is not kept (`kube.oversize`).
    """
    obj = without_excess(obj)
    out: Object = {k: interned(v) for k, v in obj.items() if k not in ("metadata", "spec")}
    if "spec" in obj:
        same = before is not None and before.get("spec") == obj["spec"]
        out["spec"] = before["spec"] if same and before else interned(obj["spec"])
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
    status = _only(obj.get("status"), ("state", "reason", "conditions"))
    if "conditions" in status:
        status["conditions"] = [c for c in status["conditions"] if c.get("type") == REPLICA_FAILURE]
    return _head(obj) | {"status": status}


def _pod(obj: Mapping[str, Any]) -> Object:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    containers = [_only(c, ("name", "resources")) for c in spec.get("containers") or ()]
    out = _only(status, ("phase", "reason", "message", "podIP", "conditions"))
    for kind in ("containerStatuses", "initContainerStatuses"):
        if status.get(kind):
            out[kind] = [
                _only(s, ("name", "ready", "started", "state", "lastState", "restartCount", "imageID"))
                for s in status[kind]
            ]
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
    return _only(modest(obj["metadata"]), (*_IDENTITY, *_TIMES))


def _only(values: Mapping[str, Any] | None, fields: Iterable[str]) -> Object:
    return {f: interned(values[f]) for f in fields if f in values} if values else {}


def interned(value: Any) -> Any:
    """Return a copy of a JSON value in which equal keys and equal short strings are the same objects."""
    kind = type(value)
    if kind is str:
        return sys.intern(value) if len(value) <= _LONGEST_SHARED else value
    if kind is dict:
        return {sys.intern(k): interned(v) for k, v in value.items()}
    if kind is list:
        return [interned(v) for v in value]
    return value
