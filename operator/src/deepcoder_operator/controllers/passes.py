"""Limits the number of concurrent passes, so that a thousand runs that wake at once share connections and memory.

A pass that waits for a slow external system, such as a bucket, gives up its slot meanwhile, so that one tenant's server
cannot block another tenant's runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class PassLimit:
    """Slots for passes, each held by a task."""

    def __init__(self, count: int) -> None:
        self._places = asyncio.Semaphore(count)
        self._holders: set[asyncio.Task[object] | None] = set()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it. A task that is cancelled while it waits to return from `aside` holds none."""
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
        """Give up the slot meanwhile, and wait for one again afterwards. Does nothing if the task holds no slot."""
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
