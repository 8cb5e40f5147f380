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


@dataclass(frozen=True)
class Judgement:
    """What asking came to."""

    response: JudgeResponse | None
    """None if no judge could say: the sample is to be quarantined."""
    attempts: int
    """Judges that were really asked to judge it."""


class Judge(Protocol):
    """A back end; safe to use from many coroutines of one event loop."""

    @property
    def errors(self) -> int:
        """Failures of judges so far."""

    @property
    def retries(self) -> Mapping[str, int]:
        """Times so far that a submission was not judged where it was asked, by reason: a judge `failed`, was
        `unavailable` (full, leaving, not reached, too late), or `turned_away` whoever asked."""

    @property
    def capacity(self) -> int:
        """Submissions that can be under way at once, as far as is known now; the others wait in the trainer."""

    async def judge(self, submission: Submission) -> Judgement:
        """Have one program judged. Raises JudgeRefused where that can never be."""

    async def version(self) -> str:
        """Which code grades, as results are filed under it. Raises SandboxUnavailable where no judge says in time."""

    def refusal(self, problem: Problem) -> str | None:
        """Why programs for this problem can never be judged here, with the mend; None if they can."""

    async def run(self) -> None:
        """What has to go on beside training, until cancelled; it raises when no judge can be kept alive."""

    async def close(self) -> None:
        """Let go of connections. Whoever called `run` ends that."""
