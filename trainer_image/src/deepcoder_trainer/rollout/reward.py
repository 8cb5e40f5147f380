"""The reward of a response: 1 if its program passes all tests of its problem, else 0, or a custom reward function.

A mathematics problem has a final answer instead of tests: the reward is 1 if the response's last box contains it. The
program is the last fenced block of the response. The problem's source determined tests and limits when the problem was
read. A failed judge gives no outcome: the reward is None, and the sample is quarantined.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import math
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from deepcoder_contracts.judge import Verdict
from deepcoder_trainer.background import abandonable
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.judge.backend import Judge, JudgeRefused
from deepcoder_trainer.judge.submission import JudgedProblem
from deepcoder_trainer.problems.answers import last_boxed
from deepcoder_trainer.problems.extract import program_of
from deepcoder_trainer.rollout.answers import AnswerVerifier
from deepcoder_trainer.rollout.programs import Programs, unreadable, wants_programs
from deepcoder_trainer.types import Outcome, Problem
from deepcoder_trainer.unicode_text import whole

log = logging.getLogger(__name__)

NO_CODE = "no_code"
NO_ANSWER = "no_answer"
ERROR = Verdict.ERROR.value

USER_PARALLEL = 32
"""Largest number of concurrent calls of a custom reward function."""
USER_SECONDS = 600.0
"""Longest time of one call."""


class Reward(Protocol):
    """Judges one response."""

    async def __call__(self, problem: Problem, response: str, key: str) -> Outcome:
        """Return the outcome of a response's text. `key` names the sample within the run."""
        ...


class JudgeReward:
    """The recipe's reward: all tests must pass, or the final answer must be right."""

    def __init__(self, judge: Judge, answers: AnswerVerifier | None = None) -> None:
        self._judge = judge
        self._answers = answers or AnswerVerifier()
        self._judged: dict[int, JudgedProblem] = {}

    async def __call__(self, problem: Problem, response: str, key: str) -> Outcome:
        """Extract the program and judge it, or extract the final answer and compare it."""
        if problem.answer is not None:
            return await self._compared(problem.answer, response)
        code = program_of(response, problem.extraction)
        if code is None:
            return Outcome(0.0, NO_CODE, 0.0, attempts=0)
        code = whole(code)
        if unreadable(code):
            return Outcome(0.0, Verdict.COMPILE_ERROR.value, 0.0, attempts=0)
        submission = self._problem(problem).submission(code, key)
        try:
            judgement = await self._judge.judge(submission)
        except JudgeRefused as refused:
            raise refused.of(problem) from refused
        if judgement.response is None:
            return Outcome(None, ERROR, 0.0, judgement.attempts)
        passed = bool(judgement.response.passed)
        decided = next(
            (v.verdict for v in judgement.response.verdicts if v.verdict is not Verdict.PASSED), Verdict.PASSED
        )
        return Outcome(float(passed), decided.value, judgement.response.seconds, judgement.attempts)

    async def _compared(self, answer: str, response: str) -> Outcome:
        given = last_boxed(response)
        if given is None:
            return Outcome(0.0, NO_ANSWER, 0.0, attempts=0)
        began = time.monotonic()
        verdict = await self._answers.compare(answer, given)
        reward = None if verdict is Verdict.ERROR else float(verdict is Verdict.PASSED)
        return Outcome(reward, verdict.value, time.monotonic() - began)

    def _problem(self, problem: Problem) -> JudgedProblem:
        # Keyed by identity, because hashing a problem would read megabytes of tests. Removed together with the problem,
        # because each evaluation may load its problems again.
        known = self._judged.get(id(problem))
        if known is None:
            if (reason := self._judge.refusal(problem)) is not None:
                raise JudgeRefused(reason, field="judge.backend").of(problem)
            known = self._judged[id(problem)] = JudgedProblem(problem)
            weakref.finalize(problem, self._judged.pop, id(problem), None).atexit = False
        return known


UserFunction = Callable[..., float | Awaitable[float]]
"""Takes (problem, response), and `programs` if it has such a third parameter."""


class UserReward:
    """Calls `recipe.reward`: a function (problem, response) -> number, plain (run in a thread) or asynchronous.

    An asynchronous function may have a third parameter, `programs`, through which the run's judges run programs.

    An exception, a value that is not a finite number, or no value within `USER_SECONDS` is a failure of the function,
    not a bad response: the sample is quarantined, as when a judge fails. A plain function that hangs cannot be stopped:
    its daemon thread is left behind, and blocks neither other calls nor the end of the process.
    """

    def __init__(self, function: UserFunction, *, wants_programs: bool = False, judge: Judge | None = None) -> None:
        """A function with `wants_programs` needs a judge before it is called (see `with_judge`)."""
        self._function, self._judge, self.wants_programs = function, judge, wants_programs
        self._free = asyncio.Semaphore(USER_PARALLEL)
        self._failed: set[type[Exception]] = set()

    async def __call__(self, problem: Problem, response: str, key: str) -> Outcome:
        """Call the function."""
        async with self._free:
            began, limit = time.monotonic(), asyncio.timeout(USER_SECONDS)
            try:
                async with limit:
                    reward = await self._value(problem, response, key)
                if not math.isfinite(reward):
                    raise ValueError(f"a reward is a finite number, not {reward}")
            except JudgeRefused:
                raise  # no other program for this problem would be judged either
            except Exception as error:
                if limit.expired():  # a TimeoutError may also be the function's own, of a server that it asks
                    log.error("the reward function returned nothing for sample %s within %.0f s", key, USER_SECONDS)
                else:
                    self._tell(error, key)
                return Outcome(None, ERROR, time.monotonic() - began)
        verdict = Verdict.PASSED if reward > 0 else Verdict.WRONG_ANSWER
        return Outcome(reward, verdict.value, time.monotonic() - began)

    def _tell(self, error: Exception, key: str) -> None:
        """Log a failure, with its traceback only the first time: often the function fails for a whole batch."""
        if type(error) in self._failed:
            log.error("the reward function failed on sample %s, too: %r", key, error)
        else:
            self._failed.add(type(error))
            log.error("the reward function failed on sample %s", key, exc_info=error)

    def with_judge(self, judge: Judge) -> UserReward:
        """Return the same reward, with a judge for `programs`."""
        return UserReward(self._function, wants_programs=True, judge=judge)

    async def _value(self, problem: Problem, response: str, key: str) -> float:
        if self.wants_programs:
            if self._judge is None:
                raise AssertionError("a reward that has programs run is given a judge first")
            answer: Any = self._function(problem, response, Programs(self._judge, problem, key))
            return float(await answer)
        if inspect.iscoroutinefunction(self._function):
            return float(await self._function(problem, response))
        value: Any = await abandonable(self._function, problem, response)
        # An object, a partial or a wrapper does not look asynchronous before it is called.
        return float(await value if inspect.isawaitable(value) else value)


def load_reward(reference: str) -> UserReward:
    """Import the function that `module:function` names. Raises BadConfig if that fails."""
    module_name, _, name = reference.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise BadConfig(
            f"recipe.reward {reference!r} cannot be imported ({error}): install its module in the trainer image, or by "
            "hand put its folder into PYTHONPATH",
            field="recipe.reward",
        ) from error
    if not callable(function):
        raise BadConfig(f"recipe.reward {reference!r} is not callable: name a function", field="recipe.reward")
    return UserReward(function, wants_programs=wants_programs(function, reference))
