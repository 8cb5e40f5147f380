"""The interface of a judge to the rest of the trainer: a submission in, a judgement or none out.

The basic rule: a failed judge is never a wrong answer. With any back end, such a submission is retried a bounded number
of times, for a bounded time. Then it comes back unjudged, and is quarantined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from deepcoder_contracts.judge import JudgeResponse
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.judge.submission import Submission
from deepcoder_trainer.types import Problem


class JudgeRefused(BadConfig):
    """The judge will never accept this submission; the message is the judge's."""

    def of(self, problem: Problem) -> JudgeRefused:
        """Return the same, with the problem's name: a judge knows only a digest of the tests."""
        return JudgeRefused(f"problem {problem.id} cannot be judged: {self}", field=self.field)


@dataclass(frozen=True)
class Judgement:
    """The result of a submission."""

    response: JudgeResponse | None
    """None if no judge could judge it: the sample is quarantined."""
    attempts: int
    """Number of judges that really judged or failed to judge it."""


class Judge(Protocol):
    """A judge back end. Many coroutines of one event loop may use it at once."""

    @property
    def errors(self) -> int:
        """Number of judge failures so far."""

    @property
    def retries(self) -> Mapping[str, int]:
        """Number of requests so far without a judgement, by reason: the judge `failed`, was `unavailable` (full,
        shutting down, unreachable, too late), or the request was `turned_away` (credentials rejected)."""

    @property
    def capacity(self) -> int:
        """Number of submissions that can be in flight, as far as is known; further ones wait in the trainer."""

    async def judge(self, submission: Submission) -> Judgement:
        """Judge one program. Raises JudgeRefused if this can never succeed."""

    async def version(self) -> str:
        """Return the judge's code version, under which results are stored. Raises SandboxUnavailable."""

    async def max_memory_mb(self) -> int | None:
        """Return the largest `memory_limit_mb` that a judge accepts, in MiB, once one answers. None: no bound is
        known."""

    def refusal(self, problem: Problem) -> str | None:
        """Return why programs for this problem can never be judged here, with the fix; None if they can."""

    async def run(self) -> None:
        """Run the back end's background work until cancelled. Raises if no judge can be kept alive."""

    async def close(self) -> None:
        """Close connections. The caller of `run` must cancel it."""
