"""Threads for blocking storage queries, divided so that one bucket's problems do not affect other buckets.

A query to an unreachable server holds a thread until the client gives up, which takes most of a minute. So each bucket
gets few threads at once: one until it has answered, a few after that, and one again once it could not be reached. Each
server, which may have many buckets, is limited too: `NEW_SERVER` threads until it has answered, one once it could not
be reached, and never all. All servers that do not answer share half of the threads, because one tenant may name any
number of them. For `OPEN_SECONDS` after a query has reached nobody, other queries to the bucket get the same answer
without a request.

A query that exceeds its deadline is given up at once. Its thread stops before the next request, and only then does the
bucket get the slot back. If any of its requests was answered, the query is merely long, and not a sign that the server
is unreachable. The deadline counts from the start of the thread; the wait for a slot has its own bound.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from deepcoder_operator.domain.world import Problem
from deepcoder_operator.storage.fair_semaphore import FairSemaphore
from deepcoder_operator.storage.s3 import UNREACHABLE, Line, StorageProblem, Unheard

AT_ONCE = 4
"""Largest number of concurrent queries to one bucket."""

OPEN_SECONDS = 10.0
"""Time, in seconds, after a query has reached nobody during which no other query is sent to the bucket."""

WAIT_SECONDS = 60.0
"""Longest time, in seconds, that a query waits for a slot of its bucket, a slot of the server, and a thread."""

THREADS = 64
NEW_SERVER = 4
"""Largest number of threads for a server that has not answered yet."""
SERVER = 48
"""Largest number of threads for a server that answers. If it stops answering, other servers still have some."""
UNPROVEN = 32
"""Largest number of threads for all servers that have not answered yet, or could not be reached last."""
_REMEMBERED = 1000

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """The target of a query. Queries to one `thing` share its slots, and all things at one `server` share that server's
    slots."""

    server: Hashable
    thing: Hashable
    name: str
    """Name of the server, for messages."""

    at_once: int = AT_ONCE


@dataclass
class _Compartment:
    """The slots of one bucket, and its last problem."""

    semaphore: FairSemaphore = field(default_factory=lambda: FairSemaphore(1))
    problem: Problem | None = None
    problem_until: float = float("-inf")

    def check(self, now: float) -> None:
        """Raise the bucket's last problem while it is still recent."""
        if self.problem is not None and now < self.problem_until:
            raise StorageProblem(self.problem.reason, self.problem.message)

    def is_away(self, problem: Problem, now: float) -> None:
        self.problem, self.problem_until = problem, now + OPEN_SECONDS
        self.semaphore.resize(1)
        self.semaphore.refuse(lambda: StorageProblem(problem.reason, problem.message))

    def at_rest(self, now: float) -> bool:
        return not self.semaphore.inside and not self.semaphore.waiting and now >= self.problem_until


class Bulkhead:
    """Runs blocking queries. Each gets a `Line` to the caller that waits for its answer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="s3")
        self._free, self._unproven = FairSemaphore(THREADS), FairSemaphore(UNPROVEN)
        self._answering: set[Hashable] = set()
        """Servers that have answered, and could be reached since."""
        self._servers: dict[Hashable, FairSemaphore] = {}
        self._compartments: dict[tuple[Hashable, Hashable], _Compartment] = {}

    def close(self) -> None:
        """Accept no more queries."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def ask(self, place: Place, seconds: float, question: Callable[[Line], T]) -> T:
        """Run `question` in a thread and return its result. Raises what it raises, and `StorageProblem` if it takes too
        long."""
        compartment, server = self._find(place)
        entered: list[FairSemaphore] = []
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                for semaphore in (compartment.semaphore, server, self._unproven, self._free):
                    if semaphore is self._unproven and place.server in self._answering:
                        continue
                    compartment.check(self._clock())
                    await semaphore.acquire()
                    entered.append(semaphore)
            compartment.check(self._clock())
        except BaseException as e:
            _release(entered)
            if not isinstance(e, TimeoutError):
                raise
            text = f"{place.name} has not answered earlier questions in {WAIT_SECONDS:.0f} s"
            raise StorageProblem(UNREACHABLE, text) from None
        line = Line()
        future = asyncio.get_running_loop().run_in_executor(self._threads, question, line)
        future.add_done_callback(lambda done: self._left(place, compartment, server, line, done, entered))
        try:
            done, _ = await asyncio.wait({future}, timeout=seconds)
        finally:
            line.gone.set()
        if not done:
            if line.answered:
                text = f"{place.name} answers, but has not answered all in {seconds:.0f} s"
                raise StorageProblem(UNREACHABLE, text)
            problem = Problem(UNREACHABLE, f"{place.name} gave no answer in {seconds:.0f} s")
            self._is_away(place, compartment, server, problem)
            raise StorageProblem(problem.reason, problem.message)
        return future.result()

    def _find(self, place: Place) -> tuple[_Compartment, FairSemaphore]:
        """Return the slots of a bucket and of its server. If there are many, unused ones are forgotten."""
        if len(self._compartments) > _REMEMBERED:
            now, known = self._clock(), self._compartments
            self._compartments = {k: c for k, c in known.items() if not c.at_rest(now)}
            needed = {server for server, _ in self._compartments}
            self._servers = {k: g for k, g in self._servers.items() if k in needed}
            self._answering &= needed
        compartment = self._compartments.setdefault((place.server, place.thing), _Compartment())
        return compartment, self._servers.setdefault(place.server, FairSemaphore(NEW_SERVER))

    def _is_away(self, place: Place, compartment: _Compartment, server: FairSemaphore, problem: Problem) -> None:
        compartment.is_away(problem, self._clock())
        self._answering.discard(place.server)
        server.resize(1)

    def _left(
        self,
        place: Place,
        compartment: _Compartment,
        server: FairSemaphore,
        line: Line,
        done: asyncio.Future[T],
        entered: list[FairSemaphore],
    ) -> None:
        """Handle the end of a thread: adjust the slots of bucket and server to its result, and release its own."""
        error = None if done.cancelled() else done.exception()
        unreachable = isinstance(error, StorageProblem) and error.problem.reason == UNREACHABLE
        if isinstance(error, StorageProblem) and unreachable and not line.answered:
            self._is_away(place, compartment, server, error.problem)
        elif line.answered or not (done.cancelled() or unreachable or isinstance(error, Unheard)):
            compartment.semaphore.resize(place.at_once)
            self._answering.add(place.server)
            server.resize(SERVER)
        _release(entered)


def _release(semaphores: list[FairSemaphore]) -> None:
    for semaphore in reversed(semaphores):
        semaphore.release()
