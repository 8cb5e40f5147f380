"""Submits programs to judges and distinguishes a wrong program from a failed judge: one policy for all back ends.

What happens to a submission:

- The judge answers with `passed` true or false: done.
- The judge failed (an `error` verdict, a 5xx, a lost connection, no answer in time, an invalid answer): another judge
  is asked, `ERRORS` times in all. Then the submission comes back unjudged, for quarantine. It is never a wrong answer.
- The judge is full or shutting down, or the submission's deadline passed in its queue: that judge is left alone for as
  long as it says, and others are asked meanwhile. Nothing was judged and nothing failed.
- The judge will never accept the submission: `JudgeRefused`, which ends the attempt with the judge's message.
- The judge rejects the credentials (a token is being rotated): nothing was judged and nothing failed. It is asked again
  at growing intervals.

A repeated submission may be judged twice, but is never counted twice, because only one answer is used. `patience`
bounds the whole, from the moment at which a judge is first asked. Only a judge at work on it may take longer: as long
as the program's tests allow, up to `longest`. Time spent waiting for our own other submissions does not count, unless
no judge answers anything for as long as `patience`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from deepcoder_contracts.judge import JudgeRequest, JudgeResponse, Verdict
from deepcoder_trainer.judge.backend import Judgement
from deepcoder_trainer.judge.endpoints import Endpoint, Endpoints, NoJudge
from deepcoder_trainer.judge.http import MAX_REST_SECONDS
from deepcoder_trainer.judge.submission import Submission
from deepcoder_trainer.protocols import SandboxUnavailable
from deepcoder_trainer.types import Problem

log = logging.getLogger(__name__)
T = TypeVar("T")

ERRORS = 3
"""Number of judge failures after which a submission is given up."""
PATIENCE = 1800.0
"""Upper bound of the patience in seconds; a stage's own limit may be lower."""
FIRST_PAUSE = 1.0
"""Seconds before a judge is first asked again about itself; doubles each time."""


class NotTold(Exception):
    """A judge cannot answer the question now."""


@dataclass(frozen=True)
class Answer:
    """The result of asking one judge."""

    response: JudgeResponse | None = None
    judged: bool = False
    """Whether this counts as an attempt: a response, or a failure of the judge."""
    rest_seconds: float = 0.0
    """Seconds for which no submission should be sent to this judge."""
    pause_seconds: float = 0.0
    """Seconds before this submission's first retry; doubles each time."""
    turned_away: bool = False
    """The credentials were rejected: nothing was judged."""
    problem: str = ""


class Transport(Protocol):
    """The transport to one kind of judge. It raises only JudgeRefused."""

    async def slots(self, judge: Endpoint) -> int | None:
        """Return the number of programs that a judge runs at once, None if unknown. Called before each submission."""

    async def ask(self, judge: Endpoint, submission: Submission) -> Answer:
        """Send the submission to one judge."""

    async def version(self, judge: Endpoint) -> str:
        """Return this judge's code version. Raises NotTold, and JudgeRefused if it will never tell."""

    async def max_memory_mb(self, judge: Endpoint) -> int | None:
        """Return this judge's largest memory limit, None if it has none or will never tell. Raises NotTold."""

    def refusal(self, problem: Problem) -> str | None:
        """As `Judge.refusal`."""

    async def close(self) -> None:
        """As `Judge.close`."""


class JudgeClient:
    """The trainer's `Judge`, over any transport."""

    def __init__(
        self,
        endpoints: Endpoints,
        transport: Transport,
        *,
        patience: float = PATIENCE,
        longest: float = math.inf,
        beside: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self._endpoints = endpoints
        self._transport = transport
        self._beside = beside
        self.patience = patience
        """Seconds after which a submission is given up that no judge is at work on."""
        self.longest = longest
        """Seconds after which a submission is given up whatever a judge may take for it."""
        self.errors = 0
        self.retries = dict.fromkeys(("failed", "unavailable", "turned_away"), 0)
        """Reason to the number of requests without a judgement; each was sent elsewhere, repeated, or given up."""

    @property
    def capacity(self) -> int:
        """Number of submissions that can be in flight, as far as is known."""
        return self._endpoints.capacity

    async def judge(self, submission: Submission) -> Judgement:
        """Judge one program. Raises JudgeRefused."""
        asked = _Asked()
        name, seconds = submission.request.id, submission.longest_seconds
        allowed, within = max(self.patience, min(self.longest, submission.answer_seconds)), self.patience
        try:
            endpoint = await self._endpoints.acquire(patience=self.patience, seconds=seconds)
            began = asyncio.get_running_loop().time()
            while True:
                within = allowed
                async with asyncio.timeout_at(began + within):
                    judgement = await self._ask_one(endpoint, submission, asked)
                if judgement is not None:
                    return judgement
                within = self.patience
                async with asyncio.timeout_at(began + within):
                    await asyncio.sleep(asked.pause_seconds)
                    endpoint = await self._endpoints.acquire(asked.erred, first=True, seconds=seconds)
        except (TimeoutError, NoJudge):
            log.warning("no judge for %s within %.0f s%s", name, within, _too_short(within, self.longest, submission))
        return Judgement(None, asked.attempts)

    async def version(self) -> str:
        """Return the code version that a judge reports; judges that do not answer are asked again.

        Results are stored under it, so there is no default: the next answer, or another judge's, would differ. Raises
        SandboxUnavailable after `patience`, and JudgeRefused.
        """
        try:
            return await self._told(self._transport.version)
        except NotTold as error:
            raise SandboxUnavailable(
                f"no judge said within {self.patience:.0f} s which code grades, under which results are filed "
                f"({error}): {SandboxUnavailable.WHERE_TO_LOOK}"
            ) from None

    async def max_memory_mb(self) -> int | None:
        """See `Judge`. If no judge has told within `patience`, none is known."""
        try:
            return await self._told(self._transport.max_memory_mb)
        except NotTold as error:
            log.warning("no judge said within %.0f s how much memory a program may have (%s)", self.patience, error)
            return None

    def refusal(self, problem: Problem) -> str | None:
        """See `Judge`."""
        return self._transport.refusal(problem)

    async def run(self) -> None:
        """Run the background work of the transport, if it has any."""
        if self._beside is not None:
            await self._beside()

    async def close(self) -> None:
        """Close connections."""
        await self._transport.close()

    async def _told(self, question: Callable[[Endpoint], Awaitable[T]]) -> T:
        """Return the first judge's answer to `question`. Judges that do not answer are asked again, for `patience`
        seconds. Raises NotTold."""
        silent: frozenset[str] = frozenset()
        pause, problem = FIRST_PAUSE, "there is none"
        try:
            async with asyncio.timeout(self.patience):
                while True:
                    endpoint = await self._endpoints.acquire(silent, first=True, patience=self.patience)
                    try:
                        return await question(endpoint)
                    except NotTold as error:
                        silent |= {endpoint.url}
                        problem = str(error)
                        log.warning("%s; asking again in %.0f s", problem, pause)
                    finally:
                        self._endpoints.release(endpoint)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, MAX_REST_SECONDS)
        except (TimeoutError, NoJudge):
            raise NotTold(problem) from None

    async def _ask_one(self, endpoint: Endpoint, submission: Submission, asked: _Asked) -> Judgement | None:
        """Ask one judge and release it. Return None if another one must be asked."""
        rest, answered = 0.0, False
        try:
            slots = await self._transport.slots(endpoint)
            if slots is not None:
                self._endpoints.learnt(endpoint, slots)
            answer = await self._transport.ask(endpoint, submission)
            asked.attempts += answer.judged
            asked.pause_seconds = answer.pause_seconds * 2.0 ** max(0, asked.attempts - 1)
            answered = answer.response is not None
            if answer.response is not None:
                return Judgement(answer.response, asked.attempts)
            rest = answer.rest_seconds
            if answer.turned_away:
                asked.turned_away += 1
                self.retries["turned_away"] += 1
                rest = min(2.0 ** (asked.turned_away - 1), MAX_REST_SECONDS)
                if not endpoint.resting:  # log it once, because many submissions may be turned away at a time
                    log.warning("judge %s turns submissions away: %s", endpoint.url, answer.problem)
            elif not answer.judged:
                self.retries["unavailable"] += 1
            else:
                self.errors += 1
                self.retries["failed"] += 1
                asked.erred |= {endpoint.url}
                log.warning("judge %s failed on %s: %s", endpoint.url, submission.request.id, answer.problem)
            return Judgement(None, asked.attempts) if asked.attempts >= ERRORS else None
        finally:
            self._endpoints.release(endpoint, seconds=submission.longest_seconds, rest_seconds=rest, answered=answered)


def _too_short(within: float, longest: float, submission: Submission) -> str:
    """Return the mend if a judge at work had to be given up before its own deadline, else nothing."""
    if within < longest or longest >= submission.answer_seconds:
        return ""
    return (
        f", and a judge may take {submission.answer_seconds:.0f} s for its {len(submission.tests)} tests of "
        f"{submission.request.time_limit_s:g} s: raise the stage's stallSeconds, or lower time_limit_s, or leave tests "
        "out"
    )


def answer_with(response: JudgeResponse, request: JudgeRequest) -> Answer:
    """Return a judge's response as an answer. A response for another submission, without a verdict, or inconsistent
    with its own verdicts is a failure of the judge."""
    if response.id != request.id:
        return Answer(judged=True, problem=f"a judgement of another submission: {response.id}")
    if response.passed is None:
        detail = next((v.detail for v in response.verdicts if v.detail), "verdict error")
        return Answer(judged=True, problem=detail)
    if not response.verdicts or response.passed != all(v.verdict is Verdict.PASSED for v in response.verdicts):
        return Answer(judged=True, problem=f"a judgement that its own verdicts deny: passed {response.passed}")
    return Answer(response, judged=True)


@dataclass
class _Asked:
    """The state of a submission so far."""

    attempts: int = 0
    erred: frozenset[str] = frozenset()
    turned_away: int = 0
    pause_seconds: float = 0.0
