"""Counts work in flight, so that admission can wait for it and idle time can be measured. Runs on one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class InFlight:
    """Counts work of one kind in flight: samples being sampled or judged, or a step being trained."""

    def __init__(self) -> None:
        self.count = 0
        self._less = asyncio.Event()
        self._changed_at: float | None = None
        self._idle = 0.0
        self._told_at: float | None = None

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one more while the context lasts."""
        self._pass_time()
        self.count += 1
        try:
            yield
        finally:
            self._pass_time()
            self.count -= 1
            self._less.set()
            self._less = asyncio.Event()

    async def room(self, limit: Callable[[], int]) -> None:
        """Wait until at most `limit()` are in flight. The limit is read again whenever one ends."""
        while self.count > limit():
            await self._less.wait()

    def idle_ratio(self) -> float:
        """Return the share of time since the last call in which nothing was in flight; 0 the first time."""
        now = self._pass_time()
        since, self._told_at = self._told_at, now
        idle, self._idle = self._idle, 0.0
        return idle / (now - since) if since is not None and now > since else 0.0

    def _pass_time(self) -> float:
        now = asyncio.get_running_loop().time()
        if self.count == 0 and self._changed_at is not None:
            self._idle += now - self._changed_at
        self._changed_at = now
        return now
