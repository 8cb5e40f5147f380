"""The operator's clock: the time of day, which no setting of the node's clock makes jump.

Deadlines, drains and the age of heartbeats decide about GPUs. A node whose clock is set an hour ahead would give up
every attempt at once, one that is set back would wait an hour too long. So time goes on as the kernel counts it, time
asleep included, and comes nearer to the wall clock by at most one second in a hundred. Until this process decides
anything (`hold`) it is the wall clock itself: a node that has just booted may be an hour behind until it asks for the
time. Times that another process wrote, before a restart or on another node, may still lie ahead: see `domain.times`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

log = logging.getLogger(__name__)

SLEW = 0.01
"""Share of the time that has passed by which a difference from the wall clock may shrink."""
TOLD_SECONDS = 5.0
"""A difference from the wall clock that is worth a line in the log."""


def since_boot() -> float:
    """Seconds that only go forward, those in which the machine was asleep among them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SteadyClock:
    """Seconds since the epoch that, once held, only go forward, at the pace of a second a second."""

    def __init__(self, wall: Callable[[], float] = time.time, boot: Callable[[], float] = since_boot) -> None:
        self._wall, self._boot = wall, boot
        self._time, self._read = wall(), boot()
        self._told = self._held = False

    def hold(self) -> None:
        """From now on it makes no step."""
        self.time()
        self._held = True

    def time(self) -> float:
        """Seconds since the epoch."""
        read = self._boot()
        elapsed, self._read = read - self._read, read
        if not self._held:
            self._time = self._wall()
            return self._time
        self._time += elapsed
        behind = self._wall() - self._time
        self._time += max(-elapsed * SLEW, min(behind, elapsed * SLEW))
        self._tell(behind)
        return self._time

    def now(self) -> datetime:
        """As statuses hold times: in whole seconds."""
        return datetime.fromtimestamp(int(self.time()), UTC)

    def _tell(self, behind: float) -> None:
        away = abs(behind) > TOLD_SECONDS
        if away and not self._told:
            log.warning("the wall clock was set: it is %+.0f s from the operator's, which follows slowly", behind)
        self._told = away
