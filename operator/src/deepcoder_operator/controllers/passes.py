"""How many passes work at a time, so that a thousand runs that wake at once share connections and memory.

A pass that waits for something slow and foreign, a bucket, steps aside meanwhile: what one tenant's server does must
not cost another's run its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class PassLimit:
    """Places for passes, each held by a task."""

    def __init__(self, count: int) -> None:
        self._places = asyncio.Semaphore(count)
        self._holders: set[asyncio.Task[object] | None] = set()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place and hold it; whoever is cancelled while it waits to come back from aside holds none."""
        await self._places.acquire()
        me = asyncio.current_task()
        self._holders.add(me)
        try:
            yield
        finally:
            if me in self._holders:
                self._leave(me)

    @asynccontextmanager
    async def aside(self) -> AsyncIterator[None]:
        """Leave the place to others meanwhile, and wait for one again after; nothing where the task holds none."""
        me = asyncio.current_task()
        if me not in self._holders:
            yield
            return
        self._leave(me)
        try:
            yield
        finally:
            await self._places.acquire()
            self._holders.add(me)

    def _leave(self, task: asyncio.Task[object] | None) -> None:
        self._holders.discard(task)
        self._places.release()
