"""Merges a user's PodTemplateSpec into the operator's: a strategic merge patch of plain dictionaries.

As with `kubectl patch`, maps are merged, lists with a merge key (containers by name, mounts by path) are merged element
by element, other lists are replaced, and null removes a key. If a field has one of several forms (a volume's source, a
variable's value source), another form replaces the operator's. A limit without a request also sets the request, as for
any container: the operator's default request is dropped.

Fields that the operator owns cannot be overridden. A field that would weaken isolation, or break the contract with the
process inside, is refused by name (`deepcoder_contracts.template_refusals`), with `TemplateError`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
}
"""Key that identifies the elements of a list, by list field, as in the Kubernetes API's patchMergeKey."""

_ONE_FORM = frozenset({"volumes", "env"})
"""Lists whose elements have one of several forms besides the merge key, as in patchStrategy retainKeys."""

_REPLACED = frozenset({"valueFrom", "readinessProbe"})
"""Maps that have one of several forms."""


class TemplateError(ValueError):
    """A template sets a forbidden field. The message names the field and how to fix it."""


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Apply `override` to `base` as a strategic merge patch. The result shares nothing with its inputs."""
    out: dict[str, Any] = _copied(base)
    return _merge_into(out, override)


def _merge_into(out: dict[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Merge into `out`, which is a copy."""
    for key, value in override.items():
        mine = out.get(key)
        if value is None:
            out.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(mine, dict) and key not in _REPLACED:
            _merge_into(mine, value)
            if key == "resources":
                _request_what_is_limited(mine, value)
        elif key in _MERGE_KEYS and isinstance(value, list) and isinstance(mine, list):
            _merge_list(mine, value, _MERGE_KEYS[key], one_form=key in _ONE_FORM)
        else:
            out[key] = _copied(value)
    return out


def _merge_list(out: list[Any], override: Sequence[Any], key: str, *, one_form: bool) -> None:
    """Merge into `out`. The elements are found through an index: a template may have ten thousand, and a search for
    each would hold up the event loop, and with it the Lease."""
    places: dict[Hashable, int] = {}
    for i, element in enumerate(out):
        places.setdefault(_name(element, key), i)
    for item in override:
        name = _name(item, key)
        at = places.setdefault(name, len(out)) if name is not None else len(out)
        if at == len(out):
            out.append(_copied(item))
        else:
            old = out[at]
            if one_form and len(item) > 1:
                old = {k: v for k, v in old.items() if k == key or k in item}
            out[at] = _merge_into(old, item)


def _name(element: Any, key: str) -> Hashable | None:
    """Return what identifies an element of a list. None if nothing does: no API server takes a list or map there."""
    name = element.get(key) if isinstance(element, Mapping) else None
    return name if isinstance(name, Hashable) else None


def _request_what_is_limited(out: dict[str, Any], override: Mapping[str, Any]) -> None:
    """Drop default requests for resources for which the override sets only a limit: Kubernetes then requests the limit.
    Otherwise the default would reserve 4 GiB for a pod that may use 800, or be refused as above a smaller limit."""
    limits, requests = override.get("limits") or {}, override.get("requests") or {}
    for name, limit in limits.items():
        if limit is not None and name not in requests:
            (out.get("requests") or {}).pop(name, None)


def _copied(value: Any) -> Any:
    """Copy a JSON value. `copy.deepcopy`, which checks for repeated references, takes ten times as long."""
    kind = type(value)
    if kind is dict:
        return {k: _copied(v) for k, v in value.items()}
    if kind is list:
        return [_copied(v) for v in value]
    if isinstance(value, Mapping):
        return _copied(dict(value))
    return _copied(list(value)) if kind is tuple else value
