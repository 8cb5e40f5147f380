"""Decides how many judges a pool should have: a pure function of the load and of recent recommendations.

A pool grows for two reasons: more programs than each slot may have in its queue, and a program that has waited too
long. The first reason says at once how many judges are enough, but ignores how long programs take. The second accounts
for that. It at most doubles the number of judges, and these must be busy before more are added: a program that waits at
one judge while another judge has a free slot is not helped by a third judge. A free judge is not removed either:
without its slot the same wait would immediately require it again.

Growth is immediate, because programs wait for it, and an announced burst needs its judges beforehand. Shrinking is
delayed: the pool keeps the largest recommendation of the stabilization window, so that warm judges survive the gap
between two batches. If the load of a judge is unknown, the pool never shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

_MOST_TIMES = 2.0


@dataclass(frozen=True)
class Load:
    """Programs in a pool, and programs announced to it."""

    busy: int = 0
    """Programs being judged."""

    queued: int = 0
    """Programs waiting in a judge's queue."""

    expected: int = 0
    """Programs that runs have announced."""

    longest_wait: float = 0.0
    """Time, in seconds, that the longest-waiting program has waited."""

    serving: int = 0
    """Number of ready judges."""

    free_slots: int = 0
    """Number of free slots of the ready judges."""

    runs: int = 0
    """Number of runs whose live attempt uses the pool, or that wait for a judge before they start one."""

    complete: bool = True
    """Whether every ready judge reported its load. If not, the true load may be higher."""

    @property
    def demand(self) -> int:
        """Programs that need a slot now or soon: at least one while an attempt runs or a run waits for a judge.

        Otherwise a pool at zero would never wake up: without a judge nothing reports a queue, an evaluation announces
        nothing, and only a new judge shows whether judges start again.
        """
        return max(self.busy + self.queued + self.expected, 1 if self.runs else 0)


@dataclass(frozen=True)
class ScalingLimits:
    """What the pool's spec allows."""

    min_replicas: int
    """Fewest judges."""

    max_replicas: int
    """Most judges."""

    slots_per_pod: int
    """Programs a judge runs at once."""

    target_queue_per_slot: float
    """Programs that may wait for each slot before the pool grows."""

    target_wait_seconds: float
    """Seconds that a program may wait before the pool grows."""

    stabilization_seconds: float
    """Time for which the largest recommendation holds."""


class Recommendation(NamedTuple):
    """A number of judges that the load required, and when (seconds of a monotonic clock)."""

    at: float
    replicas: int


class Decision(NamedTuple):
    """The number of judges to have, and the recommendations to remember."""

    replicas: int
    history: tuple[Recommendation, ...]


def recommend(load: Load, limits: ScalingLimits) -> int:
    """Return the fewest judges, within bounds, for the queue and for how long it has waited."""
    return _clamp(max(_for_queue(load, limits), _for_waiting(load, limits)), limits)


def _for_queue(load: Load, limits: ScalingLimits) -> int:
    """Return the fewest judges at which no slot has more than the target queue.

    A judge with s slots takes s programs and holds s x t more, so ceil(demand / (s x (1 + t))) judges are enough.
    """
    per_pod = limits.slots_per_pod * (1 + limits.target_queue_per_slot)
    return math.ceil(load.demand / per_pod)


def _for_waiting(load: Load, limits: ScalingLimits) -> int:
    """Return the judges that would bring the longest wait to its target, at most twice the serving ones and at most one
    slot per program.

    While a judge has a free slot, more judges would not help.
    """
    if load.longest_wait <= limits.target_wait_seconds:
        return 0
    times = 1.0 if load.free_slots else min(_MOST_TIMES, load.longest_wait / limits.target_wait_seconds)
    a_slot_each = math.ceil((load.busy + load.queued) / limits.slots_per_pod)
    return min(a_slot_each, math.ceil(load.serving * times))


def decide(
    load: Load, limits: ScalingLimits, *, current: int, history: Sequence[Recommendation], now: float
) -> Decision:
    """Return the number of judges to have now.

    `current` is the previous decision (status.desiredReplicas). With an empty history, as after a restart of the
    operator, it counts as just recommended, so a restart never shrinks a pool.
    """
    recommended = recommend(load, limits)
    if not load.complete:
        recommended = max(recommended, _clamp(current, limits))
    known = tuple(history) or (Recommendation(now, current),)
    window = [r for r in known if now - r.at < limits.stabilization_seconds]
    kept = (*_undominated(window, recommended), Recommendation(now, recommended))
    return Decision(_clamp(max(r.replicas for r in kept), limits), kept)


def _clamp(replicas: int, limits: ScalingLimits) -> int:
    return max(limits.min_replicas, min(limits.max_replicas, replicas))


def _undominated(window: Sequence[Recommendation], newest: int) -> list[Recommendation]:
    """Keep the recommendations that can still be the largest of a later window: larger than all later ones."""
    kept: list[Recommendation] = []
    largest = newest
    for entry in reversed(window):
        if entry.replicas > largest:
            kept.append(entry)
            largest = entry.replicas
    return kept[::-1]
