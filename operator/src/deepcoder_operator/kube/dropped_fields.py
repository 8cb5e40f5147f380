"""Detects status fields that the API server drops because its CRD is older than this operator.

The API server silently drops fields that its schema does not know. Data that the operator reads back later is then
lost, for example that no judge could start, or which nodes to avoid. So the result of each write is compared with what
was written. A dropped field is reported once, in the log and in an event, with the way to fix it, and in a gauge until
it is kept again, because CRDs may be upgraded while the operator runs. Perhaps the field is never written again, so a
field that has not been dropped for an hour is forgotten, like its event, and is reported again if it is dropped again.
Code that reads such a field back remembers it meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from deepcoder_operator.kube.resources import Resource
from deepcoder_operator.metrics import STATUS_DROPPED

log = logging.getLogger(__name__)

DROPPED = "StatusFieldsDropped"
"""Reason of the event."""

FORGOTTEN_SECONDS = 3600.0
"""Time, in seconds, after which a dropped field that was not written again is forgotten. Events last as long."""


class DroppedFields:
    """Tracks which written status fields of a kind the API server drops."""

    def __init__(self, resource: Resource, clock: Callable[[], float] = time.monotonic) -> None:
        self._kind, self._clock = resource.kind, clock
        self._gone: dict[str, float] = {}
        """Time at which each field was last dropped."""
        STATUS_DROPPED.labels(self._kind).set_function(lambda: len(self._lately()))

    def compare(self, wrote: Mapping[str, Any], stored: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """Compare a written status with the stored one.

        Returns the top-level fields, with their written values, of which something was dropped, and a message. The
        message is empty if no newly dropped field was found.
        """
        kept: dict[str, bool] = {}
        for path, there in _fields(wrote, stored, all_of_them=bool(self._gone)):
            kept[path] = there and kept.get(path, True)
        gone = {path for path, there in kept.items() if not there}
        before = self._lately()
        new = gone - before.keys()
        self._gone = {path: at for path, at in before.items() if path not in kept} | dict.fromkeys(gone, self._clock())
        return {name: wrote[name] for name in {_top(path) for path in gone}}, self._told(new) if new else ""

    def _lately(self) -> dict[str, float]:
        return {path: at for path, at in self._gone.items() if self._clock() - at < FORGOTTEN_SECONDS}

    def _told(self, new: set[str]) -> str:
        names = ", ".join(f"status.{path}" for path in sorted(new))
        text = (
            f"the API server drops {names} of a {self._kind}: its CRDs are older than this operator, which loses what "
            "it stores there, at the latest when it restarts: upgrade the CRDs (kubectl apply --server-side -f crds/, "
            "or the chart with crds.install)"
        )
        log.warning(text)
        return text


def _fields(
    wrote: Mapping[str, Any], stored: Mapping[str, Any], where: str = "", *, all_of_them: bool
) -> Iterator[tuple[str, bool]]:
    """Yield the paths of written fields that were not stored, with False. With `all_of_them`, also yield stored ones,
    with True."""
    for name, value in wrote.items():
        if name not in stored:
            yield f"{where}{name}", False
            continue
        if all_of_them:
            yield f"{where}{name}", True
        found = stored[name]
        if isinstance(value, dict) and isinstance(found, dict):
            yield from _fields(value, found, f"{where}{name}.", all_of_them=all_of_them)
        elif isinstance(value, list) and isinstance(found, list):
            for one, other in zip(value, found, strict=False):
                if isinstance(one, dict) and isinstance(other, dict):
                    yield from _fields(one, other, f"{where}{name}[].", all_of_them=all_of_them)


def _top(path: str) -> str:
    return path.partition(".")[0].partition("[")[0]
