"""Threads for blocking questions to storage, shared out so that no bucket's trouble is another's.

A question to a server that is away holds a thread until the client gives up, most of a minute. So each bucket has few
threads at once: one until it has answered, `AT_ONCE` after that, one again once it could not be reached. For
`OPEN_SECONDS` after a question found nobody the others are told the same without asking. A question that runs past its
deadline is answered as unreachable at once; its thread stops before the next request, and the bucket has that place
back only then. A deadline counts from when the thread begins, waiting for a place has a bound of its own.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from deepcoder_operator.domain.world import Problem
from deepcoder_operator.storage.s3 import UNREACHABLE, StorageProblem, Unheard

AT_ONCE = 4
"""Questions to one bucket at a time."""

OPEN_SECONDS = 10.0
"""For so long after a question found nobody, no other is asked."""

WAIT_SECONDS = 60.0
"""Longest wait for a bucket's, or for any, thread."""

THREADS = 64
_REMEMBERED = 1000

T = TypeVar("T")


@dataclass
class _Compartment:
    """What is under way at one bucket."""

    asking: int = 0
    waiting: int = 0
    answered: bool = False
    problem: Problem | None = None
    problem_until: float = float("-inf")
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def known_problem(self, now: float) -> Problem | None:
        return self.problem if now < self.problem_until else None

    def is_away(self, problem: Problem, now: float) -> None:
        self.answered, self.problem, self.problem_until = False, problem, now + OPEN_SECONDS
        self.signal()

    def signal(self) -> None:
        """Have all who wait look again."""
        self.changed.set()
        self.changed = asyncio.Event()


class Bulkhead:
    """Runs blocking questions; each is given an event that is set when nobody waits for its answer any more."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="s3")
        self._free = asyncio.Semaphore(THREADS)
        self._compartments: dict[Hashable, _Compartment] = {}

    def close(self) -> None:
        """Take no more questions."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def ask(self, key: Hashable, server: str, seconds: float, question: Callable[[threading.Event], T]) -> T:
        """The answer; raises what the question raises, and `StorageProblem` when it takes too long."""
        place = self._compartment(key)
        place.waiting += 1
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._enter(place)
        except TimeoutError:
            text = f"{server} has not answered earlier questions in {WAIT_SECONDS:.0f} s"
            raise StorageProblem(UNREACHABLE, text) from None
        finally:
            place.waiting -= 1
        return await self._run(place, server, seconds, question)

    def _compartment(self, key: Hashable) -> _Compartment:
        """The bucket's; those at rest are forgotten when there are many."""
        if len(self._compartments) > _REMEMBERED:
            now, all_ = self._clock(), self._compartments
            self._compartments = {k: p for k, p in all_.items() if p.asking or p.waiting or p.known_problem(now)}
        return self._compartments.setdefault(key, _Compartment())

    async def _enter(self, place: _Compartment) -> None:
        """Take a place at the bucket and one of all threads; raises its problem while it is known to be away."""
        while True:
            if problem := place.known_problem(self._clock()):
                raise StorageProblem(problem.reason, problem.message)
            if place.asking < (AT_ONCE if place.answered else 1):
                break
            await place.changed.wait()
        place.asking += 1
        try:
            await self._free.acquire()
        except BaseException:
            place.asking -= 1
            place.signal()
            raise

    async def _run(
        self, place: _Compartment, server: str, seconds: float, question: Callable[[threading.Event], T]
    ) -> T:
        unheard = threading.Event()
        future = asyncio.get_running_loop().run_in_executor(self._threads, question, unheard)
        future.add_done_callback(lambda done: self._left(place, done))
        try:
            done, _ = await asyncio.wait({future}, timeout=seconds)
        finally:
            unheard.set()
        if not done:
            problem = Problem(UNREACHABLE, f"{server} gave no answer in {seconds:.0f} s")
            place.is_away(problem, self._clock())
            raise StorageProblem(problem.reason, problem.message)
        return future.result()

    def _left(self, place: _Compartment, done: asyncio.Future[T]) -> None:
        """A thread has ended: what it found is what is known of the bucket."""
        place.asking -= 1
        self._free.release()
        error = None if done.cancelled() else done.exception()
        if isinstance(error, StorageProblem) and error.problem.reason == UNREACHABLE:
            place.is_away(error.problem, self._clock())
        elif not done.cancelled() and not isinstance(error, Unheard):
            place.answered = True
        place.signal()
