"""What the dashboard keeps of a run's object: what it shows, and of what is too large only the name and the phase.

Whoever may create a run can fill its pod templates, labels or managed fields with 1.5 MiB of `[{}, {}, …]`, which take
thirty times as much memory once parsed. A few dozen such runs of one team would end the dashboard for all teams. The
page shows none of these fields, so they go before the next object is parsed. What the operator says of such a run is
shown. Pure.
"""

from __future__ import annotations

import json
from typing import Any

from deepcoder_client.connection import Object

_METADATA = ("namespace", "name", "uid", "generation", "resourceVersion", "creationTimestamp", "deletionTimestamp")
_ROLES = ("head", "samplers", "learners")
_MOST_CHARACTERS = 400 << 10
"""Largest size of what is kept of a run, as JSON. Specs have some ten thousand characters without their templates."""
_UNSHOWN = "unshown"


def shown(run: Object) -> Object:
    """Return the object without what the page does not show. It is changed, not copied."""
    about = run["metadata"]
    kept: Object = {"metadata": {k: about[k] for k in _METADATA if k in about}}
    kept |= {k: run[k] for k in ("spec", "status") if k in run}
    for holder in _holders(kept.get("spec")):
        holder.pop("template", None)
    if (size := len(json.dumps(kept))) > _MOST_CHARACTERS:
        phase = status.get("phase") if isinstance(status := kept.pop("status", None), dict) else None
        del kept["spec"]
        why = f"it has {size >> 10} KiB without its pod templates, more than the dashboard keeps of a run"
        kept |= {"status": {"phase": phase}, _UNSHOWN: why}
    return kept


def why_unshown(run: Object) -> str | None:
    """Return why only the name and the phase were kept; None if all was kept."""
    why = run.get(_UNSHOWN)
    return None if why is None else str(why)


def _holders(spec: Any) -> list[Object]:
    """Return the maps of a spec that hold a pod template, of whatever release."""
    stages = _map(spec).get("stages")
    resources = [_map(_map(stage).get("resources")) for stage in (stages if isinstance(stages, list) else ())]
    groups = [_map(group.get(role)) for group in resources for role in _ROLES]
    return [*groups, _map(_map(_map(spec).get("sandbox")).get("template"))]


def _map(value: Any) -> Object:
    return value if isinstance(value, dict) else {}
