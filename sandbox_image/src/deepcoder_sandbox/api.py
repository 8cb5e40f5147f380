"""The Python API: judge programs from Python, without a server.

    with Judge(slots=2) as judge:
        answer = judge.judge(JudgeRequest(id="a", code="print(input())", tests=[TestCase(input="1", output="1")]))

Programs run in zygotes that are started as processes of their own, never by forking the caller: what the caller holds
in memory does not reach them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from deepcoder_contracts.judge import JudgeRequest, JudgeResponse, Tier
from deepcoder_sandbox import admission, tiers
from deepcoder_sandbox.admission import Refused
from deepcoder_sandbox.pool import Pool
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.zygote_process import ZygoteConfig

__all__ = ["Judge", "JudgeRequest", "JudgeResponse", "Refused", "Tier"]

_AHEAD_PER_SLOT = 8
_MAX_QUEUED = 100_000
_CLOSE_S = 10.0


class Judge:
    """A judge of `slots` programs at once, confined at least as `minimum_tier` says.

    Raises `deepcoder_sandbox.tiers.TierRefused` where that cannot be had. Thread-safe.
    """

    def __init__(
        self,
        slots: int | None = None,
        minimum_tier: Tier = Tier.LANDLOCK,
        packages: Iterable[str] = (),
        preload: Iterable[str] = (),
    ) -> None:
        config = ZygoteConfig(packages=tuple(packages), preload=tuple(preload))
        config, self.findings = tiers.find_tier(config, minimum_tier)
        self._pool = Pool(config, slots or os.cpu_count() or 1, f"local-{os.getpid()}", _MAX_QUEUED)

    @property
    def tier(self) -> Tier:
        """Confinement in force."""
        return self.findings.tier

    def submit(self, request: JudgeRequest) -> Future[JudgeResponse]:
        """Queue a request; raises Refused where it makes no sense. Its tests have to be in it."""
        if request.tests is None:
            raise Refused("tests_sha256: there is no store without a server: give the tests themselves", "tests_sha256")
        tests = tuple(request.tests)
        admission.check(request, tests)
        return self._pool.submit(Submission(request, tests))

    def judge(self, request: JudgeRequest) -> JudgeResponse:
        """Judge one request and wait for the answer. Raises Refused."""
        return self.submit(request).result()

    def judge_many(self, requests: Iterable[JudgeRequest]) -> Iterator[JudgeResponse]:
        """Judge many, in order, reading ahead of the answers by a bounded number. Raises Refused."""
        pending: list[Future[JudgeResponse]] = []
        for request in requests:
            pending.append(self.submit(request))
            if len(pending) > _AHEAD_PER_SLOT * self._pool.slots:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()

    def close(self) -> None:
        """Finish what was accepted, for a bounded time, and end all zygotes."""
        self._pool.close(_CLOSE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
