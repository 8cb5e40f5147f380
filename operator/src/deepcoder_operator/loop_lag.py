"""Measures how late the event loop runs its callbacks: a callback that computes or blocks delays all others.

Scrapes see the worst delay of the last minute, so that they do not miss one that is already over. A loop that is
completely blocked answers no probe, and the kubelet's timeout detects that. The liveness probe also fails once after a
long delay. So a loop that is blocked again and again is found even if probes arrive between two delays, while a single
delay of up to about 45 s, or a machine's suspension, fails too few probes in a row for a restart, which would help
nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from prometheus_client import Gauge

BEAT_SECONDS = 0.5
WINDOW_SECONDS = 60.0
LONGEST_LAG_SECONDS = 30.0
"""A loop that was blocked for longer than this fails its next liveness probe."""

RECENT_SECONDS = 10.0
"""Time for which that fails: the period of the chart's livenessProbe, which restarts after six failures in a row."""

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
        since = self._clock() - RECENT_SECONDS
        recent = next((lag for at, lag in self._worst if at >= since), 0.0)
        if recent <= LONGEST_LAG_SECONDS:
            return None
        return f"the event loop was blocked for {recent:.0f} s and has run again for less than {RECENT_SECONDS:.0f} s"
