"""The Python API: judge programs from Python, without a server.

    from deepcoder_sandbox.api import Judge, JudgeRequest, TestCase

    with Judge(slots=2) as judge:
        request = JudgeRequest(id="sum", code="print(int(input()) + 1)", tests=[TestCase(input="1", output="2")])
        answer = judge.judge(request)             # waits; answer.passed is True
        future = judge.submit(request)            # a concurrent.futures.Future
        for answer in judge.judge_many(requests): # in order, reading ahead of the answers
            ...
        answer = await judge.judge_async(request) # on an event loop; cancelling removes it from the queue

`passed` is None if the judge itself failed, after attempts on fresh processes: submit again, and never treat it as
False. An invalid request raises `Refused`, which names the `field`. A machine that cannot confine programs raises
`TierRefused` when a Judge is created. Requests that are not judged when a Judge is closed raise `Draining`. If the
`deadline_s` of a request passes before a slot is free, `Overdue` is raised: submit again. `judge_many` reads ahead, so
there a deadline counts from the start of judging.

Programs run in zygotes that are started as processes of their own, never by forking the caller: what the caller holds
in memory does not reach them. Expected outputs stay in this process.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from deepcoder_contracts.cpus import cpu_limit
from deepcoder_contracts.judge import JudgeRequest, JudgeResponse, Kind, Scoring, TestCase, TestVerdict, Tier, Verdict
from deepcoder_sandbox import admission, tiers
from deepcoder_sandbox.admission import Refused
from deepcoder_sandbox.pool import Draining, Overdue, Pool
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.tiers import TierRefused
from deepcoder_sandbox.zygote_process import ZygoteConfig, package_directories

__all__ = [
    "Draining",
    "Judge",
    "JudgeRequest",
    "JudgeResponse",
    "Kind",
    "Overdue",
    "Refused",
    "Scoring",
    "TestCase",
    "TestVerdict",
    "Tier",
    "TierRefused",
    "Verdict",
]

_AHEAD_PER_SLOT = 8
_MAX_QUEUED = 100_000
_CLOSE_S = 10.0


class Judge:
    """Judges up to `slots` programs at once, in tier `minimum_tier` or a stronger one.

    By default there is one slot for each CPU that the container is allowed. `packages` are directories that programs
    may import from, and `preload` modules of these to load once, for speed. Thread-safe. Raises TierRefused if the tier
    is not available here, and ValueError if a directory of `packages` does not exist.
    """

    def __init__(
        self,
        slots: int | None = None,
        minimum_tier: Tier = Tier.LANDLOCK,
        packages: Iterable[str] = (),
        preload: Iterable[str] = (),
    ) -> None:
        if slots is not None and slots < 1:
            raise ValueError(f"slots: needs to be at least 1, not {slots}")
        config = ZygoteConfig(packages=package_directories(packages), preload=tuple(preload))
        config, self.findings = tiers.find_tier(config, minimum_tier)
        slots = slots or cpu_limit()
        self._pool = Pool(config, slots, f"local-{os.getpid()}", _MAX_QUEUED)

    @property
    def tier(self) -> Tier:
        """The confinement in force."""
        return self.findings.tier

    def submit(self, request: JudgeRequest) -> Future[JudgeResponse]:
        """Queue a request that contains its tests. Raises Refused if it is invalid, and Draining on a closed Judge.

        Cancelling the future removes the request from the queue, unless it is already being judged.
        """
        return self._submit(request, queue_counts=True)

    def _submit(self, request: JudgeRequest, queue_counts: bool) -> Future[JudgeResponse]:
        if request.tests is None:
            raise Refused("tests_sha256: there is no store without a server: give the tests themselves", "tests_sha256")
        tests = tuple(request.tests)
        admission.check(request, tests)
        return self._pool.submit(Submission(request, tests), queue_counts)

    def judge(self, request: JudgeRequest) -> JudgeResponse:
        """Judge one request and wait for the answer. Raises Refused, Overdue."""
        return self.submit(request).result()

    async def judge_async(self, request: JudgeRequest) -> JudgeResponse:
        """Judge one request without blocking the event loop. Raises Refused, Overdue."""
        return await asyncio.wrap_future(self.submit(request))

    def judge_many(self, requests: Iterable[JudgeRequest]) -> Iterator[JudgeResponse]:
        """Judge many requests and yield the answers in order. It reads ahead of the answers by a bounded number.

        Raises Refused for the first invalid request, after the answers to all requests before it.
        """
        pending: deque[Future[JudgeResponse]] = deque()
        refused: Refused | None = None
        for request in requests:
            try:
                pending.append(self._submit(request, queue_counts=False))
            except Refused as error:
                refused = error
                break
            while pending and (pending[0].done() or len(pending) > _AHEAD_PER_SLOT * self._pool.slots):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        if refused is not None:
            raise refused

    def close(self) -> None:
        """Finish accepted requests within a bounded time, then end all zygotes."""
        self._pool.close(_CLOSE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
