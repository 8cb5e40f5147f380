"""How many judges a pool should have: a pure function of the load and of the recommendations made lately.

Two things call for judges: programs beyond what each slot may have behind it, and a program that has waited longer than
it should. The first says at once how many judges are enough; it knows nothing of how long programs take. The second
does, and is answered by twice as many at most, which then have to be busy before more are asked for: what waits at one
judge while a slot of another is free is not helped by a third. Nor is the other to go for it: without a free slot the
same wait would call for it again at once.

Growth is immediate, since programs wait for it and an announced burst is of use only if the judges are up before it.
Shrinking waits: the pool keeps the largest recommendation of the stabilization window, so that the gap between two
batches does not cost the warm judges of the second. Load that nobody could read never shrinks a pool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

_MOST_TIMES = 2.0


@dataclass(frozen=True)
class Load:
    """Programs in a pool and on their way to it."""

    busy: int = 0
    """Programs being judged."""

    queued: int = 0
    """Programs waiting in a judge's queue."""

    expected: int = 0
    """Programs that runs have announced."""

    longest_wait: float = 0.0
    """Seconds for which the program that has waited longest has waited."""

    serving: int = 0
    """Judges that are ready."""

    free_slots: int = 0
    """Slots of theirs that have no program."""

    runs: int = 0
    """Runs whose attempt runs and has its programs judged here, or that wait for a judge before they make one."""

    complete: bool = True
    """Whether every ready judge was heard; if not, the true load may be higher."""

    @property
    def demand(self) -> int:
        """Programs that want a slot now or soon: at least one while an attempt runs or a run waits for a judge.

        Without a judge there is no queue to be heard of, an evaluation announces nothing, and whether judges start that
        did not is found by trying one: a pool at zero would never wake for any of it.
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
    """A number of judges that the load called for, and when (seconds of any clock that only goes forward)."""

    at: float
    replicas: int


class Decision(NamedTuple):
    """The number of judges to have, and the recommendations to remember for the next time."""

    replicas: int
    history: tuple[Recommendation, ...]


def recommend(load: Load, limits: ScalingLimits) -> int:
    """Fewest judges, within bounds, for what is queued and for how long it has waited."""
    return _clamp(max(_for_queue(load, limits), _for_waiting(load, limits)), limits)


def _for_queue(load: Load, limits: ScalingLimits) -> int:
    """Fewest judges at which no slot has more than the target queue behind it.

    A judge with s slots takes s programs and holds s x t more, so ceil(demand / (s x (1 + t))) judges are enough.
    """
    per_pod = limits.slots_per_pod * (1 + limits.target_queue_per_slot)
    return math.ceil(load.demand / per_pod)


def _for_waiting(load: Load, limits: ScalingLimits) -> int:
    """Judges that would bring the longest wait to its target: at most twice those that serve, and a slot a program.

    While one of them has a free slot there are as many as would help.
    """
    if load.longest_wait <= limits.target_wait_seconds:
        return 0
    times = 1.0 if load.free_slots else min(_MOST_TIMES, load.longest_wait / limits.target_wait_seconds)
    a_slot_each = math.ceil((load.busy + load.queued) / limits.slots_per_pod)
    return min(a_slot_each, math.ceil(load.serving * times))


def decide(
    load: Load, limits: ScalingLimits, *, current: int, history: Sequence[Recommendation], now: float
) -> Decision:
    """The number of judges to have now.

    `current` is the number decided before (status.desiredReplicas). With an empty history, as after a restart of the
    operator, it counts as just recommended: a restart never shrinks a pool.
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
    """Recommendations that can still be the largest of a later window: larger than all that came after them."""
    kept: list[Recommendation] = []
    largest = newest
    for entry in reversed(window):
        if entry.replicas > largest:
            kept.append(entry)
            largest = entry.replicas
    return kept[::-1]
