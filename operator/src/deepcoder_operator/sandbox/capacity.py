"""Polls ready judges for their load: `GET /v1/capacity` with the pool's token, at most once a second per judge.

A judge that does not answer in time has unknown load, and a pool with such a judge is never scaled down because of it.
An answer stays valid for a few seconds, so that a single lost packet does not count as silence.

Only the first silence of a judge delays its pool: a policy may cut off hundreds of judges at once, and a tenant may run
judges that never answer. Until it answers again, it is polled in the background. No poll waits for one of another pool.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from weakref import WeakValueDictionary

import aiohttp
from pydantic import ValidationError

from deepcoder_contracts.judge import Capacity
from deepcoder_operator.domain.pool_names import JUDGE_PORT
from deepcoder_operator.domain.pool_plan import JudgeLoad, JudgePod
from deepcoder_operator.sandbox.metrics import POLLS

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""Shortest time between two requests to one judge."""

STALE_SECONDS = 5.0
"""Age at which an answer no longer counts."""

_DEADLINE_SECONDS = 2.0
_CONCURRENT = 32
"""Largest number of judges that one pass of a pool polls at a time. In the background, all passes of a pool together
poll at most as many silent ones."""
_MAX_ANSWER_BYTES = 64 * 1024
_MOST = 2**31 - 1
"""Largest figure that is believed. A status could not hold the sum of larger ones, and a pass would fail on them."""


class CapacityPoller:
    """Polls judges, and remembers when each was polled. Close it when done."""

    def __init__(self, clock: Callable[[], float], port: int = JUDGE_PORT) -> None:
        self._clock, self._port = clock, port
        self._session: aiohttp.ClientSession | None = None
        self._asked: dict[str, float] = {}
        self._answers: dict[str, tuple[float, JudgeLoad]] = {}
        self._silent: set[str] = set()
        self._in_background: dict[str, asyncio.Task[None]] = {}
        self._background: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """Slots of each pool's background polls, shared by all its passes. They last as long as a poll holds them."""

    async def close(self) -> None:
        """Close all connections."""
        self.forget(list(self._in_background))
        if self._session is not None:
            await self._session.close()

    async def poll(self, pool: str, pods: Iterable[JudgePod], token: str) -> dict[str, JudgeLoad]:
        """Poll the judges that are due of the pool with this UID. Returns the load, by pod UID, of all judges that have
        answered recently."""
        ready = [p for p in pods if p.ready and p.address is not None and not p.foreign]
        now = self._clock()
        due = [p for p in ready if now - self._asked.get(p.uid, float("-inf")) >= POLL_SECONDS]
        self._asked |= {p.uid: now for p in due}
        slots = asyncio.Semaphore(_CONCURRENT)
        background = self._background.setdefault(pool, asyncio.Semaphore(_CONCURRENT))
        for pod in due:
            if pod.uid in self._silent and pod.uid not in self._in_background:
                task = asyncio.create_task(self._ask(pod, token, background), name=f"poll {pod.name}")
                self._in_background[pod.uid] = task
                task.add_done_callback(partial(self._ended, pod.uid))
        await asyncio.gather(*(self._ask(p, token, slots) for p in due if p.uid not in self._silent))
        now = self._clock()
        return {
            p.uid: answer[1]
            for p in ready
            if (answer := self._answers.get(p.uid)) is not None and now - answer[0] < STALE_SECONDS
        }

    def forget(self, uids: Iterable[str]) -> None:
        """Forget deleted pods."""
        for uid in uids:
            self._asked.pop(uid, None)
            self._answers.pop(uid, None)
            self._silent.discard(uid)
            task = self._in_background.get(uid)
            if task is not None:
                task.cancel()

    def _ended(self, uid: str, _: asyncio.Task[None]) -> None:
        del self._in_background[uid]

    async def _ask(self, pod: JudgePod, token: str, slots: asyncio.Semaphore) -> None:
        if self._session is None:
            # Without a limit of its own, which would have pools wait for each other.
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        host = f"[{pod.address}]" if pod.address and ":" in pod.address else pod.address
        url = f"http://{host}:{self._port}/v1/capacity"
        try:
            async with (
                slots,
                asyncio.timeout(_DEADLINE_SECONDS),
                self._session.get(url, headers={"Authorization": f"Bearer {token}"}, allow_redirects=False) as response,
            ):
                body = await _whole(response.content)
            if response.status != 200:
                raise ValueError(f"HTTP {response.status}")
            capacity = Capacity.model_validate_json(body)
            if max(capacity.slots, capacity.busy, capacity.queued, capacity.oldest_wait_s) > _MOST:
                raise ValueError("impossible figures")
        except (aiohttp.ClientError, TimeoutError, ValidationError, ValueError) as e:
            POLLS.labels(outcome="failed").inc()
            self._silent.add(pod.uid)
            log.debug("judge %s did not report its load: %s: %s", pod.name, type(e).__name__, e)
            return
        POLLS.labels(outcome="answered").inc()
        self._silent.discard(pod.uid)
        load = JudgeLoad(capacity.slots, capacity.busy, capacity.queued, capacity.oldest_wait_s)
        self._answers[pod.uid] = (self._clock(), load)


async def _whole(content: aiohttp.StreamReader) -> bytes:
    """Return an answer, which may arrive in several pieces. Raises `ValueError` if it is too long."""
    body = b""
    async for piece in content.iter_any():
        body += piece
        if len(body) > _MAX_ANSWER_BYTES:
            raise ValueError(f"more than {_MAX_ANSWER_BYTES} bytes")
    return body
