"""What waits for a slot, and whose turn it is: fair between runs, by the time that their programs take of the slots.

Next is the run whose programs have had the least time so far; what is under way counts with the time that it has taken
already, and at least with what this run's programs take on average, so that two free slots do not both go to one run
while another waits. Within a run: first come, first served. A run that has nothing waiting earns nothing by that: with
its next program it begins where those stand that wait, and what it has had counts for as long as they have not had as
much. Where it begins is told by time that was really spent: what is only expected may turn out otherwise.

One run alone may fill the queue. Where it is full, the newest program of the run that has most waiting makes room for
a run that has fewer: each may so hold its share, and none waits for a place behind another's flood. What had to make
room, or finds none, is told so and comes again. Memory is bounded by what waits and is under way, and by
`RUNS_REMEMBERED`.

Pure bookkeeping on times that are handed in; whoever calls holds a lock. Runs are believed to be who they say: one that
took a new name for each of its programs would always be a newcomer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

T = TypeVar("T")

RUNS_REMEMBERED: Final = 1000
"""Runs with nothing to do whose time is kept in mind."""

_NEWEST_COUNTS = 0.2


class Full(Exception):
    """No room, and no run that has more waiting than this one."""


@dataclass
class _Run(Generic[T]):
    mean_s: float
    """What its programs take, as far as is known."""
    served_s: float = 0.0
    """Time that its programs have had and that counts."""
    waiting: deque[T] = field(default_factory=deque)
    began: list[float] = field(default_factory=list)
    """When what is under way began."""

    def spent_s(self, now: float) -> float:
        """Time that its programs have had until now."""
        return self.served_s + sum(now - began for began in self.began)

    def expected_s(self, now: float) -> float:
        """Time that its programs will have had once those that are under way have ended."""
        return self.served_s + sum(max(self.mean_s, now - began) for began in self.began)

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do."""
        return not self.waiting and not self.began


class FairQueue(Generic[T]):
    """At most `max_waiting` items, each of some run."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._runs: dict[str, _Run[T]] = {}
        self._waiting = 0
        self._mean_s = 0.0

    def __len__(self) -> int:
        return self._waiting

    def __iter__(self) -> Iterator[T]:
        """All that waits, run by run."""
        for run in self._runs.values():
            yield from run.waiting

    def heads(self) -> Iterator[T]:
        """What each run has waiting for longest."""
        return (run.waiting[0] for run in self._runs.values() if run.waiting)

    def add(self, name: str, item: T, now: float) -> T | None:
        """Let an item wait; return what has to make room for it, if anything. Raises Full."""
        known = self._runs.get(name)
        displaced = None
        if self._waiting >= self._max_waiting:
            most = max(self._runs.values(), key=lambda run: len(run.waiting))
            if len(most.waiting) < (len(known.waiting) if known else 0) + 2:
                raise Full
            displaced = most.waiting.pop()
            self._waiting -= 1
        run = known or self._runs.setdefault(name, _Run(self._mean_s))
        if not run.waiting:
            run.served_s += max(0.0, self._level_s(now, run) - run.spent_s(now))
        run.waiting.append(item)
        self._waiting += 1
        return displaced

    def take(self, now: float) -> T:
        """Take the item whose turn it is; `done` is to be told of it. Raises LookupError where none waits."""
        waiting = [run for run in self._runs.values() if run.waiting]
        if not waiting:
            raise LookupError
        run = min(waiting, key=lambda each: (each.expected_s(now), len(each.began)))
        run.began.append(now)
        self._waiting -= 1
        item = run.waiting.popleft()
        self._forget_idle(now)
        return item

    def put_back(self, name: str, item: T) -> None:
        """Let what was taken wait once more, as its run's next: `done` is to be told all the same."""
        self._runs[name].waiting.appendleft(item)
        self._waiting += 1

    def remove(self, name: str, item: T, now: float) -> None:
        """Take out what waits. Raises ValueError where it does not."""
        self._runs[name].waiting.remove(item)
        self._waiting -= 1
        self._forget_idle(now)

    def done(self, name: str, began: float, now: float, *, judged: bool = True) -> None:
        """What was taken at `began` needs its slot no more; not `judged`: it took none after all."""
        run = self._runs[name]
        run.began.remove(began)
        if judged:
            run.served_s += now - began
            run.mean_s += _NEWEST_COUNTS * (now - began - run.mean_s)
            self._mean_s += _NEWEST_COUNTS * (now - began - self._mean_s)
        self._forget_idle(now)

    def clear(self) -> None:
        """Let go of all that waits."""
        for run in self._runs.values():
            run.waiting.clear()
        self._waiting = 0

    def _level_s(self, now: float, newcomer: _Run[T]) -> float:
        """Where a run begins: beside the least of those that wait; where none does, it is to be ahead of nobody."""
        others = [run for run in self._runs.values() if run is not newcomer]
        waiting = [run.spent_s(now) for run in others if run.waiting]
        return min(waiting) if waiting else max((run.spent_s(now) for run in others), default=0.0)

    def _forget_idle(self, now: float) -> None:
        """Forget the runs with nothing to do whose time is of no account: none waits that has had less."""
        least = min((run.spent_s(now) for run in self._runs.values() if run.waiting), default=math.inf)
        for name in [name for name, run in self._runs.items() if run.idle]:
            if self._runs[name].served_s <= least or len(self._runs) > RUNS_REMEMBERED:
                del self._runs[name]
