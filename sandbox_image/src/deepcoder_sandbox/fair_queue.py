"""The queue for slots, and whose turn it is: fair between runs, by the slot time that their programs use.

The next program is one of the run whose programs have used the least time so far. A program under way counts with the
time that it has used already, and at least with the run's average, so that two free slots do not both go to one run
while another waits. Within a run the order is first come, first served. A run gains nothing by having nothing queued:
with its next program it starts level with the runs that wait, and time that it has used counts until they have used as
much. Only time that was really spent decides where it starts, because expected time may turn out different.

One run alone may fill the queue. If the queue is full, the newest program of the run with the most waiting programs
makes room for a run with fewer. So each run can hold its share, and none waits behind another's flood. A program that
has to make room, or finds none, is refused, and its client retries. Memory is bounded by what waits and is under way,
and by `RUNS_REMEMBERED`.

This is pure bookkeeping on times that the caller passes in; the caller holds a lock. The names of runs are trusted: a
run that took a new name for each of its programs would always be a newcomer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

T = TypeVar("T")

RUNS_REMEMBERED: Final = 1000
"""Number of runs beyond which idle ones are forgotten, whatever time they have used."""

_NEWEST_COUNTS = 0.2


class Full(Exception):
    """There is no room, and no run with more waiting programs that could make room."""


@dataclass
class _Run(Generic[T]):
    mean_s: float
    """Average seconds that its programs take; at first that of all runs."""
    served_s: float = 0.0
    """Seconds that count as used, without programs under way."""
    waiting: deque[T] = field(default_factory=deque)
    began: list[float] = field(default_factory=list)
    """When its programs under way began."""

    def spent_s(self, now: float) -> float:
        """Return the seconds that its programs have used until now."""
        return self.served_s + sum(now - began for began in self.began)

    def expected_s(self, now: float) -> float:
        """Return the seconds that its programs will have used once those under way have ended."""
        return self.served_s + sum(max(self.mean_s, now - began) for began in self.began)

    @property
    def idle(self) -> bool:
        """True if nothing of it waits or is under way."""
        return not self.waiting and not self.began


class FairQueue(Generic[T]):
    """Holds at most `max_waiting` items, each of which belongs to a run."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._runs: dict[str, _Run[T]] = {}
        self._waiting = 0
        self._mean_s = 0.0

    def __len__(self) -> int:
        return self._waiting

    def __iter__(self) -> Iterator[T]:
        """Yield all waiting items, run by run."""
        for run in self._runs.values():
            yield from run.waiting

    def heads(self) -> Iterator[T]:
        """Return, for each run, the item that has waited longest."""
        return (run.waiting[0] for run in self._runs.values() if run.waiting)

    def add(self, name: str, item: T, now: float) -> T | None:
        """Add an item; return the item that has to make room for it, or None. Raises Full."""
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
        """Take the item whose turn it is. The caller must call `done` for it. Raises LookupError if none waits."""
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
        """Queue a taken item again, as its run's next. The caller must still call `done` for it."""
        self._runs[name].waiting.appendleft(item)
        self._waiting += 1

    def remove(self, name: str, item: T, now: float) -> None:
        """Remove a waiting item. Raises ValueError if it does not wait."""
        self._runs[name].waiting.remove(item)
        self._waiting -= 1
        self._forget_idle(now)

    def done(self, name: str, began: float, now: float, *, judged: bool = True) -> None:
        """Record that the item taken at `began` has left its slot. If it was not `judged`, its time does not count."""
        run = self._runs[name]
        run.began.remove(began)
        if judged:
            run.served_s += now - began
            run.mean_s += _NEWEST_COUNTS * (now - began - run.mean_s)
            self._mean_s += _NEWEST_COUNTS * (now - began - self._mean_s)
        self._forget_idle(now)

    def clear(self) -> None:
        """Drop all waiting items."""
        for run in self._runs.values():
            run.waiting.clear()
        self._waiting = 0

    def _level_s(self, now: float, newcomer: _Run[T]) -> float:
        """Return where a run starts: level with the least used run that waits; if none waits, ahead of no run."""
        others = [run for run in self._runs.values() if run is not newcomer]
        waiting = [run.spent_s(now) for run in others if run.waiting]
        return min(waiting) if waiting else max((run.spent_s(now) for run in others), default=0.0)

    def _forget_idle(self, now: float) -> None:
        """Forget idle runs whose time no longer matters, because no waiting run has used less."""
        least = min((run.spent_s(now) for run in self._runs.values() if run.waiting), default=math.inf)
        for name in [name for name, run in self._runs.items() if run.idle]:
            if self._runs[name].served_s <= least or len(self._runs) > RUNS_REMEMBERED:
                del self._runs[name]
