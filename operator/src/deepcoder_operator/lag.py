"""How late the event loop comes to what is due: a callback that computes or blocks holds up all others.

The worst of the last minute is what a scrape and a probe see, so that neither misses what is over when it looks. A loop
that stands still answers no probe at all, which the kubelet's timeout tells.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from prometheus_client import Gauge

BEAT_SECONDS = 0.5
WINDOW_SECONDS = 60.0
LONGEST_LAG_SECONDS = 30.0
"""A loop that was held up for longer than this is not alive."""

LAG = Gauge(
    "deepcoder_operator_loop_lag_seconds", "Longest time in the last minute for which the event loop was blocked"
)


class LoopLag:
    """Measures the loop that `run` runs in."""

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
        """The loop was late by this much; only what no later one exceeds need be remembered."""
        now = self._clock()
        while self._worst and (self._worst[-1][1] <= lag):
            self._worst.pop()
        self._worst.append((now, lag))
        while self._worst[0][0] < now - WINDOW_SECONDS:
            self._worst.popleft()
        LAG.set(self.worst)

    @property
    def worst(self) -> float:
        """The longest of the last minute."""
        return self._worst[0][1] if self._worst else 0.0

    def check(self) -> str | None:
        """For a liveness probe."""
        if self.worst <= LONGEST_LAG_SECONDS:
            return None
        return f"the event loop was held up for {self.worst:.0f} s within the last minute"
