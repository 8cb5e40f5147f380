"""What queries have found out, for the queries after them, for a while and within bounds. Thread-safe.

A query has a deadline. A checkpoint of a thousand files, or a run of a thousand evaluations, may take longer. So each
query goes on where the last one was cut off, and none would ever end if each began anew. A damaged checkpoint is not
verified again by every query of its stage.

Findings are kept by server and bucket: another server may have a bucket of the same name.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

REJECTED_SECONDS = 300.0
"""Time, in seconds, for which a checkpoint that was found damaged is not verified again."""

VERIFIED_SECONDS = 600.0
"""Time, in seconds, after which a verification that was cut off begins anew."""

STAGE_SECONDS = 3600.0
"""Time, in seconds, for which an evaluation of another stage is not read again."""

_VERIFICATIONS = 1000
_EVALUATIONS = 20_000

V = TypeVar("V")


class Kept(Generic[V]):
    """Values by key, for a time. If there are too many, the oldest is forgotten."""

    def __init__(self, clock: Callable[[], float], seconds: float, most: int) -> None:
        self._clock, self._seconds, self._most = clock, seconds, most
        self._found: OrderedDict[Hashable, tuple[float, V]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> V | None:
        """Return what was put recently, or None."""
        with self._lock:
            found = self._found.get(key)
            return found[1] if found is not None and self._clock() - found[0] < self._seconds else None

    def put(self, key: Hashable, value: V) -> None:
        """Keep a value, instead of the key's earlier one."""
        with self._lock:
            self._found[key] = (self._clock(), value)
            self._found.move_to_end(key)
            if len(self._found) > self._most:
                self._found.popitem(last=False)

    def drop(self, key: Hashable) -> None:
        """Forget the key's value."""
        with self._lock:
            self._found.pop(key, None)


class Findings:
    """All that is kept."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.damage: Kept[str] = Kept(clock, REJECTED_SECONDS, _VERIFICATIONS)
        """What is wrong with a folder, by its place and its manifest's digest."""

        self.verified: Kept[int] = Kept(clock, VERIFIED_SECONDS, _VERIFICATIONS)
        """How many of a manifest's files were found as it says, in its order, by its place and digest."""

        self.stages: Kept[str] = Kept(clock, STAGE_SECONDS, _EVALUATIONS)
        """The stage of an evaluation, by its place."""
