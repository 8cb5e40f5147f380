"""A user's PodTemplateSpec merged over the operator's: strategic merge of plain dictionaries.

Maps are merged, lists with a merge key (containers by name, mounts by path) element by element, other lists are
replaced, and null removes a key, as `kubectl patch` does. Where a field has one of several forms (a volume's source,
where a variable's value is from) another form replaces the operator's instead of joining it. What the operator owns
cannot be overridden: a field that would weaken isolation or break the contract with the process inside is refused
with `TemplateError`, by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
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
"""List field to the key that identifies its elements, as in the Kubernetes API's patchMergeKey."""

_ONE_FORM = frozenset({"volumes", "env"})
"""Lists whose elements have, beside the merge key, one of several forms, as in patchStrategy retainKeys."""

_REPLACED = frozenset({"valueFrom"})
"""Maps with one of several forms."""


class TemplateError(ValueError):
    """A template asks for what it may not; the message names the field and the mend."""


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`override` merged strategically over `base`; neither is changed."""
    out = deepcopy(dict(base))
    for key, value in override.items():
        mine = out.get(key)
        if value is None:
            out.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(mine, Mapping) and key not in _REPLACED:
            out[key] = merge(mine, value)
        elif key in _MERGE_KEYS and isinstance(value, list) and isinstance(mine, list):
            out[key] = _merge_list(mine, value, _MERGE_KEYS[key], one_form=key in _ONE_FORM)
        else:
            out[key] = deepcopy(value)
    return out


def _merge_list(base: Sequence[Any], override: Sequence[Any], key: str, *, one_form: bool) -> list[Any]:
    out = list(base)
    for item in override:
        name = item.get(key) if isinstance(item, Mapping) else None
        at = next(
            (i for i, b in enumerate(out) if isinstance(b, Mapping) and name is not None and b.get(key) == name), None
        )
        if at is None:
            out.append(deepcopy(item))
        else:
            old = out[at]
            if one_form and len(item) > 1:
                old = {k: v for k, v in old.items() if k == key or k in item}
            out[at] = merge(old, item)
    return out


def refuse_owned(template: Mapping[str, Any], owned: Iterable[Sequence[str]], where: str) -> None:
    """Raise if the template sets an owned field.

    `owned` are paths below the template such as ("spec", "restartPolicy"); a segment `containers[judge]` reaches into
    the element of that name. `where` is the template's own path in the resource, for the message.
    """
    for path in owned:
        if _has(template, path):
            raise TemplateError(f"{where}.{'.'.join(path)} is set by the operator: remove it from the template")


def _has(node: Any, path: Sequence[str]) -> bool:
    head, *rest = path
    field, bracket, name = head.partition("[")
    if not isinstance(node, Mapping) or field not in node:
        return False
    value = node[field]
    if bracket:
        elements = value if isinstance(value, list) else []
        value = next((e for e in elements if isinstance(e, Mapping) and e.get("name") == name.rstrip("]")), None)
        if value is None:
            return False
    return not rest or _has(value, rest)
