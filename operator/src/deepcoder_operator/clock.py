"""The operator's clock: the time of day, without jumps when the node's clock is set.

Deadlines, drains and the age of heartbeats decide about GPUs. If the node's clock were set an hour ahead, the operator
would give up every attempt at once; if it were set back, the operator would wait an hour too long. So this clock
follows the kernel's boot clock, which includes suspended time, and approaches the wall clock by at most one second in a
hundred. Before this process makes decisions (`hold`), it is the wall clock itself, because a node that has just booted
may be an hour behind until it synchronizes. Times that another process wrote, before a restart or on another node, may
still lie in the future: see `domain.times`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

log = logging.getLogger(__name__)

SLEW = 0.01
"""Largest correction towards the wall clock, as a share of the elapsed time."""
TOLD_SECONDS = 5.0
"""Difference from the wall clock, in seconds, from which a warning is logged."""


def since_boot() -> float:
    """Return the seconds since boot, including time in which the machine was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SteadyClock:
    """A clock in seconds since the epoch that, once held, never jumps and never goes back."""

    def __init__(self, wall: Callable[[], float] = time.time, boot: Callable[[], float] = since_boot) -> None:
        self._wall, self._boot = wall, boot
        self._time, self._read = wall(), boot()
        self._told = self._held = False

    def hold(self) -> None:
        """Follow the boot clock from now on, without jumps."""
        self.time()
        self._held = True

    def time(self) -> float:
        """Return the seconds since the epoch."""
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
        """Return the time in whole seconds, as statuses hold it."""
        return datetime.fromtimestamp(int(self.time()), UTC)

    def _tell(self, behind: float) -> None:
        away = abs(behind) > TOLD_SECONDS
        if away and not self._told:
            log.warning("the wall clock was set: it is %+.0f s from the operator's, which follows slowly", behind)
        self._told = away
