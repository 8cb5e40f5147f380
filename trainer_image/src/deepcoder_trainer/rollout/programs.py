"""Lets a custom reward function run programs on the run's judges.

A failed judge gives no verdict: `JudgeFailed` passes through the reward function, and the sample is quarantined, as it
is when the function itself fails. A program that no judge could read gets `compile_error`, as with the recipe's own
reward: a model must not be able to avoid its verdict. A problem that no judge accepts ends the attempt.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from deepcoder_contracts.judge import MAX_CODE_BYTES, JudgeResponse, Kind, TestCase, TestVerdict, Verdict
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.judge.backend import Judge, JudgeRefused
from deepcoder_trainer.judge.submission import JudgedProblem
from deepcoder_trainer.types import Problem
from deepcoder_trainer.unicode_text import whole

PARAMETER = "programs"
"""Name of a reward function's optional third parameter."""


class JudgeFailed(RuntimeError):
    """No judge could judge a program."""


class GivenTestsRefused(RuntimeError):
    """No judge accepts, or could read, the tests or the time limit of the reward function. They may be made of the
    response."""


def unreadable(code: str) -> bool:
    """Whether no judge could read a program, whatever it does."""
    return "\0" in code or len(code.encode()) > MAX_CODE_BYTES


class Programs:
    """Runs programs for a reward function, for one response."""

    def __init__(self, judge: Judge, problem: Problem, key: str) -> None:
        self._judge, self._problem, self._key = judge, problem, key
        self._asked = 0

    async def judge(
        self, code: str, tests: Iterable[tuple[str, str]] | None = None, *, kind: Kind = Kind.STDIN,
        fn_name: str | None = None, time_limit_s: float | None = None,
    ) -> JudgeResponse:  # fmt: skip
        """Run a program on (input, expected output) pairs, by default the problem's own tests with its own kind.

        The response has a verdict for each test up to the first that failed. Raises `JudgeFailed` if no judge could
        judge the program, `JudgeRefused` if no judge accepts the problem, and `GivenTestsRefused`.
        """
        problem = self._problem
        if tests is not None:
            cases = tuple(TestCase(input=whole(given), output=whole(wanted)) for given, wanted in tests)
            problem = replace(problem, tests=cases, kind=kind, fn_name=fn_name)
        if time_limit_s is not None:
            problem = replace(problem, time_limit_s=time_limit_s)
        self._asked += 1
        code, key = whole(code), f"{self._key}/{self._asked}"
        if unreadable(code):
            verdict = TestVerdict(verdict=Verdict.COMPILE_ERROR, seconds=0.0)
            return JudgeResponse(id=key, passed=False, verdicts=[verdict], seconds=0.0, worker="")
        problems_own = tests is None and time_limit_s is None
        try:
            submission = JudgedProblem(problem).submission(code, key)
        except ValidationError as error:
            if problems_own:
                raise
            raise GivenTestsRefused(_first(error)) from error
        try:
            if (reason := self._judge.refusal(problem)) is not None:
                raise JudgeRefused(reason, field="judge.backend")
            judgement = await self._judge.judge(submission)
        except JudgeRefused as refused:
            if problems_own:
                raise refused.of(problem) from refused
            raise GivenTestsRefused(str(refused)) from refused
        if judgement.response is None or judgement.response.passed is None:
            raise JudgeFailed(f"no judge could judge program {self._asked} of sample {self._key}")
        return judgement.response

    async def passes(self, code: str, tests: Iterable[tuple[str, str]] | None = None, **more: Any) -> bool:
        """Whether a program passes all tests. Takes the arguments of `judge` and raises the same errors."""
        return bool((await self.judge(code, tests, **more)).passed)


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def wants_programs(function: Callable[..., Any], reference: str) -> bool:
    """Whether a reward function has the parameter. Raises BadConfig if it is not third or the function is not async."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return False
    if PARAMETER not in names:
        return False
    if names.index(PARAMETER) != 2:
        raise BadConfig(f"recipe.reward {reference!r}: make it (problem, response, {PARAMETER})", field="recipe.reward")
    if not inspect.iscoroutinefunction(function):
        raise BadConfig(
            f"recipe.reward {reference!r} takes {PARAMETER}, whose methods must be awaited: make it an async def",
            field="recipe.reward",
        )
    return True
