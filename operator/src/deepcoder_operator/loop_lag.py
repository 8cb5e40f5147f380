"""Measures how late the event loop runs its callbacks: a callback that computes or blocks delays all others.

Scrapes and probes see the worst delay of the last minute, so that neither misses one that is already over. A loop that
is completely blocked answers no probe, and the kubelet's timeout detects that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from prometheus_client import Gauge

BEAT_SECONDS = 0.5
WINDOW_SECONDS = 60.0
LONGEST_LAG_SECONDS = 30.0
"""A loop that was blocked for longer than this fails its liveness probe."""

LAG = Gauge(
    "deepcoder_operator_loop_lag_seconds", "Longest time in the last minute for which the event loop was blocked"
)


class LoopLag:
    """Measures the lag of the event loop in which `run` runs."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._worst: deque[tuple[float, float]] = deque()

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            due = self._clock() + BEAT_SECONDS
            await asyncio.sleep(BEAT_SECONDS)
            self.note(max(0.0, self._clock() - due))

    def note(self, lag: float) -> None:
        """Record a lag. Earlier lags that are no larger are dropped, because they cannot be the worst again."""
        now = self._clock()
        while self._worst and (self._worst[-1][1] <= lag):
            self._worst.pop()
        self._worst.append((now, lag))
        while self._worst[0][0] < now - WINDOW_SECONDS:
            self._worst.popleft()
        LAG.set(self.worst)

    @property
    def worst(self) -> float:
        """The longest lag of the last minute, in seconds."""
        return self._worst[0][1] if self._worst else 0.0

    def check(self) -> str | None:
        """Return why the loop is not alive, or None. For a liveness probe."""
        if self.worst <= LONGEST_LAG_SECONDS:
            return None
        return f"the event loop was blocked for {self.worst:.0f} s within the last minute"
