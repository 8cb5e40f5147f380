"""Which judges exist right now, how many submissions each has, and which to ask next.

A pool's headless Service resolves to one address per ready pod. It is resolved every two seconds, so that new pods are
used and pods that left are not asked. If the name service knows no pod of the pool, there are no judges; if the name
service itself does not answer, the last result stays in use. A judge that is full or unreachable is left alone for a
while. A judge gets up to `PER_SLOT` submissions for each program that it runs at once: enough that no slot waits for
the network, and that the pool sees a queue by which it scales up (a pool whose targetQueuePerSlot is above 7 scales
only by what the trainer announces). If its submissions could take long it gets fewer, down to two per slot, so that the
last one is judged well within its deadline. The rest wait here, where they cost nothing and go to whichever judge is
free first. Only `PoolResolver` does I/O: it asks the name service.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import zlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from deepcoder_trainer.judge.submission import QUEUE_SECONDS

log = logging.getLogger(__name__)

RESOLVE_SECONDS = 2.0
PER_SLOT = 8
"""Most submissions in flight at a judge per slot, including the one being judged."""
FEWEST_PER_SLOT = 2
"""Submissions in flight per slot even if they may take long: one is judged, the next is ready."""
LONGEST_WAIT = QUEUE_SECONDS / 2
"""Longest wait of a submission in a judge's queue, in seconds, if all before it use their full time. Its deadline
allows twice as much, because a busy machine takes longer."""
UNKNOWN_IN_FLIGHT = PER_SLOT
"""Submissions in flight at a judge that has not reported its number of slots."""

_NO_SUCH_NAME = frozenset({socket.EAI_NONAME, socket.EAI_NODATA})


class NoJudge(Exception):
    """No judge has answered for too long."""


@dataclass
class Endpoint:
    """One judge."""

    url: str
    """Base URL; also its name in logs."""
    limit: int
    """Largest number of submissions in flight at this judge."""
    slots: int = 1
    """Number of programs that it runs at once, as far as is known."""
    in_flight: int = 0
    held_seconds: float = 0.0
    """Longest time in seconds that judging the submissions in flight may take."""
    asked_capacity: bool = False
    """Whether its number of slots has been requested."""
    rests_until: float = 0.0
    """Event-loop time before which no submission is sent to it."""

    @property
    def resting(self) -> bool:
        """Whether no submission should be sent to it now."""
        return self.rests_until > asyncio.get_running_loop().time()

    @property
    def has_room(self) -> bool:
        """Whether another submission would be judged there in time."""
        soon = self.in_flight < FEWEST_PER_SLOT * self.slots or self.held_seconds <= LONGEST_WAIT * self.slots
        return soon and self.in_flight < self.limit


@dataclass
class _Waiter:
    avoid: frozenset[str]
    granted: asyncio.Future[Endpoint]
    since: float
    patience: float | None
    seconds: float


class Endpoints:
    """The judges that can be asked; empty until the first resolution.

    A judge that becomes free goes to the first waiter, and no other waiter is woken. With hundreds of submissions
    waiting for a few judges, waking all of them each time would cost more than the judging.
    """

    def __init__(self, urls: Iterable[str] = (), *, limit: int = UNKNOWN_IN_FLIGHT, slots: int = 1) -> None:
        """`limit` and `slots` apply to a judge that has not reported its slots yet."""
        self._limit = limit
        self._slots = slots
        self._all: dict[str, Endpoint] = {}
        self._waiters: deque[_Waiter] = deque()
        self._answered_at = 0.0
        self._expiry: asyncio.TimerHandle | None = None
        self.replace(urls)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def capacity(self) -> int:
        """Number of submissions that all judges together may have in flight."""
        return sum(e.limit for e in self._all.values())

    def replace(self, urls: Iterable[str]) -> None:
        """Set the judges by base URL. Of equally busy ones the first is used first; known ones keep their load."""
        self._all = {url: self._all.get(url, Endpoint(url, self._limit, self._slots)) for url in urls}
        self._grant()

    def learnt(self, endpoint: Endpoint, slots: int) -> None:
        """Record how many programs a judge runs at once."""
        endpoint.slots = max(1, slots)
        endpoint.limit = PER_SLOT * endpoint.slots
        self._grant()

    async def acquire(
        self,
        avoid: frozenset[str] = frozenset(),
        *,
        first: bool = False,
        patience: float | None = None,
        seconds: float = 0.0,
    ) -> Endpoint:
        """Wait for a judge and return the least busy one, preferably none of `avoid`. Pass it to `release` afterwards.

        `seconds` is the longest time that the submission may take. `first` goes before all waiters. Raises `NoJudge` if
        no judge has answered for `patience` seconds.
        """
        loop = asyncio.get_running_loop()
        waiter = _Waiter(avoid, loop.create_future(), loop.time(), patience, seconds)
        if first:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        self._grant()
        if patience is not None and not waiter.granted.done() and self._expiry is None:
            self._expiry = loop.call_later(patience, self._expire)
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.exception() is None:
                self.release(waiter.granted.result(), seconds=seconds)
            raise

    def release(
        self, endpoint: Endpoint, *, seconds: float = 0.0, rest_seconds: float = 0.0, answered: bool = False
    ) -> None:
        """Release a judge that was acquired with `seconds`; it gets no submission for `rest_seconds`.

        `answered`: whether it has judged.
        """
        endpoint.in_flight -= 1
        endpoint.held_seconds -= seconds
        loop = asyncio.get_running_loop()
        if answered:
            self._answered_at = loop.time()
        if rest_seconds > 0:
            endpoint.rests_until = loop.time() + rest_seconds
            loop.call_later(rest_seconds, self._grant)
        self._grant()

    def _grant(self) -> None:
        """Assign judges to waiters, first come, first served."""
        still: list[_Waiter] = []
        while self._waiters:
            waiter = self._waiters.popleft()
            if waiter.granted.done():  # cancelled
                continue
            endpoint = self._choose(waiter.avoid, waiter.granted.get_loop().time())
            if endpoint is not None:
                endpoint.in_flight += 1
                endpoint.held_seconds += waiter.seconds
                waiter.granted.set_result(endpoint)
                continue
            still.append(waiter)
            if not waiter.avoid:  # no later waiter is easier to serve
                break
        self._waiters.extendleft(reversed(still))

    def _expire(self) -> None:
        """Fail the waiters whose patience has ended, and schedule the next check."""
        loop = asyncio.get_running_loop()
        ends: list[float] = []
        for waiter in self._waiters:
            if waiter.patience is None or waiter.granted.done():
                continue
            end = max(waiter.since, self._answered_at) + waiter.patience
            if end <= loop.time():
                waiter.granted.set_exception(NoJudge())
            else:
                ends.append(end)
        self._expiry = loop.call_at(min(ends), self._expire) if ends else None

    def _choose(self, avoid: frozenset[str], now: float) -> Endpoint | None:
        awake = [e for e in self._all.values() if e.rests_until <= now and e.has_room]
        others = [e for e in awake if e.url not in avoid]
        # Judges that failed are used again only if there is no other judge at all, not if the others are busy.
        if not others and any(url not in avoid for url in self._all):
            return None
        return min(others or awake, key=lambda e: e.in_flight, default=None)


class PoolResolver:
    """Keeps `Endpoints` equal to the addresses behind a headless Service, in a background task.

    Each resolver orders them differently; otherwise all runs that share a pool would begin with the same judge.
    """

    def __init__(self, endpoints: Endpoints, host: str, port: int) -> None:
        self._endpoints = endpoints
        self._host = host
        self._port = port
        self._known: set[str] = set()
        self._salt = os.urandom(8)

    async def run(self) -> None:
        """Resolve until cancelled."""
        while True:
            urls = await self._resolve()
            if urls is not None:
                if urls != self._known:
                    log.info("judges: %s", ", ".join(sorted(urls)) or "none")
                self._known = urls
                self._endpoints.replace(sorted(urls, key=lambda url: zlib.crc32(self._salt + url.encode())))
            await asyncio.sleep(RESOLVE_SECONDS)

    async def _resolve(self) -> set[str] | None:
        """Return the judges' URLs; None if the name service did not answer."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(5):
                infos = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError) as error:
            log.debug("cannot resolve %s: %s", self._host, error)
            # An address that left the Service may be another pod's by now, which must see neither program nor token.
            return set() if isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_NAME else None
        addresses = {(info[0], str(info[4][0])) for info in infos}
        if any(family is socket.AF_INET for family, _ in addresses):  # a pod with two addresses is one judge
            addresses = {(family, address) for family, address in addresses if family is socket.AF_INET}
        return {f"http://{_bracketed(address)}:{self._port}" for _, address in addresses}


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
