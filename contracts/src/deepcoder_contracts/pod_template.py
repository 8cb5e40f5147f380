"""Checks the structure of a user's PodTemplateSpec, as far as the platform itself reads it.

The CRD preserves a template as it was written, so nothing has checked it before. Without this check, a string in place
of a list would crash the operator's pass, or a plan, instead of being reported. Fields that only the API server or
KubeRay reads are left to them. A template far larger than any pod's is refused before anything walks through it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from deepcoder_contracts.sizing import is_gpu

_TEXT = "text"
_TEXTS = "a map of text to text"
_QUANTITIES = "a map of resource to quantity"
_ANY: dict[str, Any] = {}

_CONTAINER: dict[str, Any] = {
    "name": _TEXT,
    "env": [{"name": _TEXT, "valueFrom": _ANY}],
    "envFrom": [_ANY],
    "ports": [_ANY],
    "volumeMounts": [{"mountPath": _TEXT}],
    "volumeDevices": [{"devicePath": _TEXT}],
    "resources": {"requests": _QUANTITIES, "limits": _QUANTITIES, "claims": [_ANY]},
    "securityContext": {
        "capabilities": {"add": [_TEXT], "drop": [_TEXT]},
        "seccompProfile": _ANY,
        "appArmorProfile": _ANY,
        "seLinuxOptions": _ANY,
    },
    "lifecycle": _ANY,
}
_TEMPLATE: dict[str, Any] = {
    "metadata": {"labels": _TEXTS, "annotations": _TEXTS},
    "spec": {
        "containers": [_CONTAINER],
        "initContainers": [_CONTAINER],
        "ephemeralContainers": [_CONTAINER],
        "volumes": [{"name": _TEXT}],
        "imagePullSecrets": [_ANY],
        "hostAliases": [_ANY],
        "tolerations": [_ANY],
        "topologySpreadConstraints": [_ANY],
        "resourceClaims": [_ANY],
        "nodeSelector": _TEXTS,
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": [_ANY]}]},
                "preferredDuringSchedulingIgnoredDuringExecution": [_ANY],
            }
        },
        "securityContext": {"seccompProfile": _ANY, "appArmorProfile": _ANY, "seLinuxOptions": _ANY, "sysctls": [_ANY]},
    },
}
"""Structure of the fields that are read: a map with known keys, a list of such maps, or one of the words above."""

_REQUIRED = frozenset({"name", "mountPath", "devicePath"})
"""Keys that identify elements of a list. An element without its key could not be merged."""

_UNIQUE = frozenset({"containers", "initContainers", "ephemeralContainers", "volumes"})
"""Lists whose elements have different names. Two elements of one name would be merged, but their GPUs counted twice."""

_MIG = "nvidia.com/mig-"
"""Prefix of the names of MIG devices. Devices with media engines (.me) or a share of the compute engines have longer
names, which do not count as GPUs: such a stage would compute on CPUs although it holds a device."""

_DEEPEST = 100
"""Largest depth of a template. A pod's own fields have about a tenth of it."""

_MOST_BYTES = 256 << 10
"""Largest size of a template as JSON. An object of the API server, with all of a run's templates, may have 1.5 MiB."""

_MOST_ELEMENTS = 1000
"""Largest length of a list in a template. Templates are merged in a loop that serves all runs of the cluster."""

_QUANTITY = re.compile(r"^[+-]?(\d+(\.\d*)?|\.\d+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)?$")


def malformed(template: Mapping[str, Any], where: str) -> str | None:
    """Return the first structural error in a template, with its path, or None."""
    return _too_large(template, where) or _check(template, _TEMPLATE, where)


def _too_large(template: Mapping[str, Any], where: str) -> str | None:
    """Return which bound a template exceeds, or None. Of one that is too deep, code that calls itself for each level
    might not get to the end."""
    try:
        size = len(json.dumps(template, default=str, skipkeys=True))
    except (RecursionError, ValueError):  # the latter if it contains itself, as a YAML file can say
        return _too_deep(where)
    if size > _MOST_BYTES:
        return f"{where} has {size >> 10} KiB as JSON, more than {_MOST_BYTES >> 10}: make it smaller"
    level: list[tuple[str, Any]] = [(where, template)]
    for _ in range(_DEEPEST):
        for path, value in level:
            if isinstance(value, list) and len(value) > _MOST_ELEMENTS:
                return f"{path} has {len(value)} elements, more than {_MOST_ELEMENTS}: make it shorter"
        level = [inner for path, value in level for inner in _inner(path, value)]
    return _too_deep(where) if level else None


def _too_deep(where: str) -> str:
    return f"{where} is nested more than {_DEEPEST} levels deep: fix the template"


def _inner(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the maps and lists in a map or a list, with their paths."""
    if isinstance(value, Mapping):
        yield from ((f"{path}.{key}", each) for key, each in value.items() if isinstance(each, Mapping | list))
    else:
        yield from ((f"{path}[{i}]", each) for i, each in enumerate(value) if isinstance(each, Mapping | list))


def _check(value: Any, form: Any, where: str) -> str | None:
    if value is None:  # null removes a field
        return None
    if isinstance(form, list):
        return _check_list(value, form[0], where)
    if form == _TEXT:
        return None if isinstance(value, str) else _wrong(where, "text", value)
    if not isinstance(value, Mapping):
        return _wrong(where, "a map", value)
    if form in (_TEXTS, _QUANTITIES):
        if others := [key for key in value if not isinstance(key, str)]:  # as a YAML file can have
            return _wrong(f"a key of {where}", "text (in quotes)", others[0])
        check = _check_text if form == _TEXTS else _check_quantity
        return next((p for k, v in value.items() if (p := check(k, v, f"{where}[{k}]"))), None)
    return next((p for k, f in form.items() if (p := _check(value.get(k), f, f"{where}.{k}"))), None)


def _check_list(value: Any, form: Any, where: str) -> str | None:
    if not isinstance(value, list):
        return _wrong(where, "a list", value)
    names: set[str] = set()
    for i, element in enumerate(value):
        if form == _TEXT:
            if not isinstance(element, str):
                return _wrong(f"{where}[{i}]", "text", element)
            continue
        if not isinstance(element, Mapping):
            return _wrong(f"{where}[{i}]", "a map", element)
        missing = next((k for k in form if k in _REQUIRED and element.get(k) is None), None)
        if missing:
            return f"{where}[{i}] has no {missing}: add one"
        if problem := _check(element, form, f"{where}[{element.get('name', i)}]"):
            return problem
        if where.rpartition(".")[2] in _UNIQUE:
            if element["name"] in names:
                return f"{where} names {element['name']} twice: make one element of the two"
            names.add(element["name"])
    return None


def _check_text(_key: str, value: Any, where: str) -> str | None:
    return None if value is None or isinstance(value, str) else _wrong(where, "text (in quotes)", value)


def _check_quantity(key: str, value: Any, where: str) -> str | None:
    if value is None:
        return None
    text = str(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not _QUANTITY.match(text):
        return _wrong(where, 'a quantity such as 8, "500m" or 64Gi', value)
    if is_gpu(key) and not text.isdecimal():
        return _wrong(where, "a whole number of GPUs such as 8", value)
    if key.startswith(_MIG) and not is_gpu(key):
        return (
            f"{where}: KubeRay does not count a device of this name as a GPU: request one like nvidia.com/mig-3g.40gb"
        )
    return None


def _wrong(where: str, wanted: str, got: Any) -> str:
    return f"{where} must be {wanted}, not {str(got)[:80]!r}: fix the template"
