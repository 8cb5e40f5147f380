"""The probes of the operator's watches: whether each watch is alive, and whether the caches are filled.

An outage of the API server does not cause a restart, because every failed attempt counts as a sign of life; a watch
that stops trying does. A missing permission does not cause a restart either, because a restart would not help; it has
its own metric. A standby replica does not watch runs, and is ready without them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import Gauge

from deepcoder_operator.controllers.watch import RunWatch
from deepcoder_operator.kube.informer import Informer
from deepcoder_operator.kube.resources import RUNS

WATCH_AGE_SECONDS = 420.0
"""Age from which a watch counts as stuck. The server ends each watch after 300 s, and the client restarts a watch that
is silent for 100 s, so a working watch shows a sign of life, an event or a failure, well before this."""

WATCH_AGE = Gauge("deepcoder_operator_watch_age_seconds", "Time since the last sign of life from a watch", ["watch"])

WATCH_REFUSED = Gauge(
    "deepcoder_operator_watch_refused",
    "1 while the API server refuses a watch, because a permission is missing or the kind is not served",
    ["watch"],
)


class Probes:
    """Checks for the health server, and the age of each watch as a metric."""

    def __init__(self, informers: Mapping[str, Informer], runs: RunWatch, leader: asyncio.Event) -> None:
        """`informers` maps names, for people, to informers. `runs` is active only while this replica leads."""
        self._informers, self._runs, self._leader = informers, runs, leader
        self._alive: dict[str, Callable[[], float]] = {
            name: partial(getattr, informer, "alive_at") for name, informer in informers.items()
        }
        self._alive[RUNS.plural] = lambda: runs.alive_at
        for name in self._alive:
            WATCH_AGE.labels(watch=name).set_function(partial(self._age, name))
        watches: dict[str, Informer | RunWatch] = {**informers, RUNS.plural: runs}
        for name, watch in watches.items():
            WATCH_REFUSED.labels(watch=name).set_function(partial(self._refused, watch))

    def watches(self) -> str | None:
        """Return which watch is stuck, or None."""
        for name in self._alive:
            age = self._age(name)
            if age > WATCH_AGE_SECONDS:
                return f"the watch of {name} has shown no sign of life for {age:.0f} s"
        return None

    def caches(self) -> str | None:
        """Return which caches have not been filled yet, or None."""
        filled = {name: informer.synced for name, informer in self._informers.items()}
        if self._leader.is_set():
            filled[RUNS.plural] = self._runs.listed
        missing = [name for name, event in filled.items() if not event.is_set()]
        return f"not listed yet: {', '.join(missing)}" if missing else None

    @staticmethod
    def _refused(watch: Informer | RunWatch) -> float:
        return float(watch.refused)

    def _age(self, name: str) -> float:
        """Return the seconds since a watch's last sign of life, or 0 if it has not begun."""
        at = self._alive[name]()
        return time.monotonic() - at if at else 0.0  # the event loop's clock; a scrape has no running loop
