"""Limits storage queries: the threads are shared by all runs, so that one slow bucket does not block the others.

Each run may have `AT_ONCE` queries in flight, each namespace `OF_NAMESPACE`. Further queries wait briefly and are then
asked to retry (`Busy`). A query that takes longer than `DEADLINE_SECONDS` is abandoned (`Late`), and its thread ends
before its next request (`check_deadline`). Its slot is free only then: a server that never answers uses up only the
slots of its own run and namespace. `Budget` limits the memory of what is being read.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

AT_ONCE = 3
OF_NAMESPACE = 12
THREADS = 24
WAIT_SECONDS = 15.0
DEADLINE_SECONDS = 60.0

T = TypeVar("T")


class Busy(Exception):
    """Too many queries of the same run or namespace are in flight."""


class Late(Exception):
    """Storage did not answer in time."""


_query = threading.local()
"""`until`: when the query that this thread answers is abandoned."""


def check_deadline() -> None:
    """Raise `Late` if the query that this thread answers was abandoned. Called before each request to storage."""
    if time.monotonic() > getattr(_query, "until", math.inf):
        raise _late()


def _late() -> Late:
    return Late(f"storage has not answered all that this page needs in {DEADLINE_SECONDS:.0f} s")


class _Places:
    """The slots of one run or namespace, and the number of queries that hold or wait for one."""

    def __init__(self, number: int) -> None:
        self.free = asyncio.Semaphore(number)
        self.users = 0


class StorageThreads:
    """Runs storage queries in threads. Used from one event loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="storage")
        self._places: dict[tuple[str, str], _Places] = {}

    async def ask(self, namespace: str, uid: str, question: Callable[[], T]) -> T:
        """Run `question` and return its result. Raises `Busy`, `Late`, and what the question raises."""
        loop, keys = asyncio.get_running_loop(), [("run", uid), ("namespace", namespace)]
        taken: list[tuple[str, str]] = []
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                for key, number in zip(keys, (AT_ONCE, OF_NAMESPACE), strict=True):
                    await self._take(key, number)
                    taken.append(key)
        except TimeoutError:
            raise Busy("storage is already being queried for this: try again in a few seconds") from None
        finally:
            if len(taken) < len(keys):
                self._leave(taken)

        def ended(_: object) -> None:
            with suppress(RuntimeError):  # the loop has ended before the thread
                loop.call_soon_threadsafe(self._leave, keys)

        job = self._threads.submit(_before, time.monotonic() + DEADLINE_SECONDS, question)
        job.add_done_callback(ended)
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await asyncio.wrap_future(job)
        except TimeoutError:
            raise _late() from None

    async def _take(self, key: tuple[str, str], number: int) -> None:
        places = self._places.setdefault(key, _Places(number))
        places.users += 1
        try:
            await places.free.acquire()
        except BaseException:
            self._forget(key)
            raise

    def _leave(self, keys: Sequence[tuple[str, str]]) -> None:
        for key in keys:
            self._places[key].free.release()
            self._forget(key)

    def _forget(self, key: tuple[str, str]) -> None:
        places = self._places[key]
        places.users -= 1
        if not places.users:
            del self._places[key]


def _before(until: float, question: Callable[[], T]) -> T:
    """Run `question` in this thread with a deadline."""
    _query.until = until
    try:
        return question()
    finally:
        del _query.until


class Budget:
    """Limits the bytes that are read and unpacked at once, over all runs. Thread-safe."""

    def __init__(self, most: int, patience: float = 10.0) -> None:
        self._left, self._most, self._patience = most, most, patience
        self._changed = threading.Condition()

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Reserve `size` bytes for the context. Raises `Busy` if they do not become free in time."""
        size = min(size, self._most)
        with self._changed:
            if not self._changed.wait_for(lambda: self._left >= size, self._patience):
                raise Busy("other rollouts and curves are being read: try again in a few seconds")
            self._left -= size
        try:
            yield
        finally:
            with self._changed:
                self._left += size
                self._changed.notify_all()
