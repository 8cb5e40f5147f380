"""A reward of the user's own: plain or asynchronous, and never a hang or a zero when it fails itself."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from deepcoder_contracts.judge import JudgeResponse, Kind, TestCase, TestVerdict, Verdict
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.judge.backend import Judgement, JudgeRefused
from deepcoder_trainer.judge.submission import Submission
from deepcoder_trainer.rollout import reward as reward_module
from deepcoder_trainer.rollout.programs import GivenTestsRefused, Programs, wants_programs
from deepcoder_trainer.rollout.reward import UserReward, load_reward
from deepcoder_trainer.types import Outcome, Problem

DOUBLE = Problem("double", "test", "double the number", (TestCase(input="3\n", output="6\n"),))


async def test_a_users_reward_may_be_plain_or_asynchronous_and_its_failure_is_no_zero() -> None:
    def plain(problem: Problem, response: str) -> float:
        return len(response) / 10

    async def slow(problem: Problem, response: str) -> float:
        return 0.0

    def broken(problem: Problem, response: str) -> float:
        raise KeyError("x")

    assert (await UserReward(plain)(DOUBLE, "12345", "k")).reward == 0.5
    assert (await UserReward(slow)(DOUBLE, "12345", "k")).verdict == "wrong_answer"
    outcome: Outcome = await UserReward(broken)(DOUBLE, "12345", "k")
    assert (outcome.reward, outcome.verdict) == (None, "error")


class Asynchronous:
    async def __call__(self, _problem: Problem, response: str) -> float:
        return len(response) / 10


@pytest.mark.parametrize("function", [Asynchronous(), lambda *given: Asynchronous()(*given)], ids=["object", "wrapper"])
async def test_what_is_asynchronous_and_does_not_look_so_is_awaited(function: Any) -> None:
    assert (await UserReward(function)(DOUBLE, "12345", "k")).reward == 0.5


async def test_where_a_users_reward_fails_is_told_in_full_once(caplog: pytest.LogCaptureFixture) -> None:
    def broken(problem: Problem, response: str) -> float:
        raise KeyError(response)

    reward = UserReward(broken)
    for key in ("k1", "k2", "k3"):
        await reward(DOUBLE, "12345", key)
    assert [bool(record.exc_info) for record in caplog.records] == [True, False, False]
    assert "sample k3, too: KeyError('12345')" in caplog.text


def leaves(_problem: Problem, _response: str) -> float:
    raise SystemExit(1)


def stops(_problem: Problem, _response: str) -> float:
    raise StopIteration


@pytest.mark.parametrize("function", [lambda *_: math.nan, lambda *_: math.inf, lambda *_: "x", leaves, stops])
async def test_what_is_no_finite_number_is_the_functions_failure(function: Callable[..., Any]) -> None:
    outcome = await UserReward(function)(DOUBLE, "12345", "k")
    assert (outcome.reward, outcome.verdict) == (None, "error")


@pytest.mark.parametrize(("function", "line"), [(leaves, "raise SystemExit(1)"), (stops, "raise StopIteration")])
async def test_the_line_at_which_a_function_leaves_is_told(
    function: Callable[..., Any], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    await UserReward(function)(DOUBLE, "12345", "k")
    assert line in caplog.text


async def test_a_function_that_hangs_is_given_up_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_module, "USER_SECONDS", 0.2)
    monkeypatch.setattr(reward_module, "USER_PARALLEL", 2)
    released = threading.Event()

    def hangs(problem: Problem, response: str) -> float:
        if response == "hang":
            released.wait()
        return 1.0

    reward = UserReward(hangs)
    try:
        async with asyncio.timeout(120):
            hung = await asyncio.gather(*(reward(DOUBLE, "hang", "k") for _ in range(4)))
            monkeypatch.setattr(reward_module, "USER_SECONDS", 60.0)  # four threads still hang; the next calls do not
            fine = await asyncio.gather(*(reward(DOUBLE, "fine", "k") for _ in range(4)))
    finally:
        released.set()
    assert [o.reward for o in hung + fine] == [None] * 4 + [1.0] * 4


async def test_a_time_out_of_the_function_itself_is_told_as_its_own_error(caplog: pytest.LogCaptureFixture) -> None:
    def asks(problem: Problem, response: str) -> float:
        raise TimeoutError("the server of my own is silent")

    outcome = await UserReward(asks)(DOUBLE, "x", "k")
    assert (outcome.reward, outcome.verdict) == (None, "error")
    assert "the server of my own is silent" in caplog.text
    assert "within 600 s" not in caplog.text, "it had seconds, and no more"


async def test_an_asynchronous_function_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_module, "USER_SECONDS", 0.1)

    async def hangs(problem: Problem, response: str) -> float:
        await asyncio.sleep(30)
        return 1.0

    assert (await UserReward(hangs)(DOUBLE, "x", "k")).reward is None


@pytest.mark.parametrize("reference", ["no_such_module:f", "os:no_such_function", "os:sep"])
def test_a_reward_that_cannot_be_loaded_is_bad_configuration(reference: str) -> None:
    with pytest.raises(BadConfig, match=r"recipe\.reward"):
        load_reward(reference)


class Judging:
    """A judge that runs nothing: it passes programs whose last test expects 6, and fails to judge `broken`."""

    def __init__(self) -> None:
        self.asked: list[Submission] = []

    def refusal(self, problem: Problem) -> str | None:
        return None

    async def judge(self, submission: Submission) -> Judgement:
        self.asked.append(submission)
        if submission.request.code == "broken":
            return Judgement(None, 3)
        passed = submission.tests[-1].output == "6\n"
        verdict = TestVerdict(verdict=Verdict.PASSED if passed else Verdict.WRONG_ANSWER, seconds=0.1)
        return Judgement(JudgeResponse(id="x", passed=passed, verdicts=[verdict], seconds=0.1, worker="w"), 1)


async def test_a_users_reward_has_programs_run_on_the_problems_tests_and_on_its_own() -> None:
    async def half_each(problem: Problem, response: str, programs: Programs) -> float:
        first = await programs.passes(response)
        second = await programs.passes(response, [("1", "2")])
        return (first + second) / 2

    judge: Any = Judging()
    reward = UserReward(half_each, wants_programs=True, judge=judge)
    assert (await reward(DOUBLE, "print(6)", "k")).reward == 0.5
    ids = [s.request.id for s in judge.asked]
    assert len(set(ids)) == 2, "each program has an id of its own"
    assert all(i.startswith("k/") for i in ids)


async def test_a_users_programs_run_as_asked_and_otherwise_as_the_problems_own() -> None:
    judge: Any = Judging()
    problem = replace(DOUBLE, kind=Kind.FUNCTION, fn_name="double", time_limit_s=7.0)
    programs = Programs(judge, problem, "k")
    await programs.judge("a")
    await programs.judge("b", [("1", "2")])
    await programs.judge("c \ud83d", [("1 \ud83d", "2 \ud83d")], kind=Kind.FUNCTION, fn_name="f", time_limit_s=2.0)
    asked = [s.request for s in judge.asked]
    assert [(r.kind, r.fn_name, r.time_limit_s) for r in asked] == [
        (Kind.FUNCTION, "double", 7.0),
        (Kind.STDIN, None, 7.0),
        (Kind.FUNCTION, "f", 2.0),
    ]
    sent = asked[2].model_dump_json()
    assert all(f"{text} \N{REPLACEMENT CHARACTER}" in sent for text in ("c", "1", "2")), "it can be sent"


async def passes_own_tests(problem: Problem, response: str, programs: Programs) -> float:
    return float(await programs.passes(response))


@pytest.mark.parametrize("told_by", ["the trainer", "the judge"])
async def test_a_problem_that_no_judge_takes_ends_the_attempt_and_tests_of_the_functions_own_do_not(
    told_by: str,
) -> None:
    """A model that has a part in its tests could end the run."""
    judge: Any = Judging()

    async def refuse(submission: Submission) -> Judgement:
        raise JudgeRefused("too much", field="judge.backend")

    if told_by == "the trainer":
        judge.refusal = lambda problem: "too much"
    else:
        judge.judge = refuse

    async def own_tests(problem: Problem, response: str, programs: Programs) -> float:
        return float(await programs.passes(response, [("9", response)]))

    with pytest.raises(JudgeRefused, match=f"^problem {DOUBLE.id} cannot be judged: too much$"):
        await UserReward(passes_own_tests, wants_programs=True, judge=judge)(DOUBLE, "print(6)", "k")
    outcome = await UserReward(own_tests, wants_programs=True, judge=judge)(DOUBLE, "print(6)", "k")
    assert (outcome.reward, outcome.verdict) == (None, "error")
    assert judge.asked == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tests": []}, "tests: List should have at least 1 item"),
        ({"tests": [("1", "2")] * 10_001}, "tests: List should have at most 10000 items"),
        ({"tests": [("1" * 20_000, "2")] * 10_001}, "tests: List should have at most 10000 items"),
        ({"tests": [("1", "2")], "kind": Kind.FUNCTION, "fn_name": "a b"}, "fn_name: String should match pattern"),
        ({"tests": [("1", "2")], "fn_name": "f"}, "fn_name is needed for kind function"),
        ({"time_limit_s": 0}, "time_limit_s: Input should be greater than 0"),
    ],
    ids=["none", "too many", "too many to be sent each time", "no name", "name without need", "no time"],
)
async def test_tests_that_no_judge_could_read_are_refused_as_those_that_a_judge_refuses(
    given: dict[str, Any], message: str
) -> None:
    judge: Any = Judging()
    with pytest.raises(GivenTestsRefused, match=rf"^{message}"):
        await Programs(judge, DOUBLE, "k").judge("print(6)", **given)
    assert judge.asked == []


@pytest.mark.parametrize("program", ["print(6)\0", "#" * (1 << 20) + "\nprint(6)"], ids=["NUL", "long"])
async def test_a_program_that_no_judge_could_read_is_wrong_and_not_unjudged(program: str) -> None:
    """A model would learn to avoid its verdict, and enough of them would end the attempt."""
    judge: Any = Judging()
    outcome = await UserReward(passes_own_tests, wants_programs=True, judge=judge)(DOUBLE, program, "k")
    assert (outcome.reward, outcome.verdict) == (0.0, "wrong_answer")
    response = await Programs(judge, DOUBLE, "k").judge(program)
    assert [v.verdict for v in response.verdicts] == [Verdict.COMPILE_ERROR]
    assert judge.asked == []


async def test_a_judge_that_failed_quarantines_the_users_sample() -> None:
    judge: Any = Judging()
    outcome = await UserReward(passes_own_tests, wants_programs=True, judge=judge)(DOUBLE, "broken", "k")
    assert (outcome.reward, outcome.verdict) == (None, "error")


def test_a_plain_function_cannot_wait_for_programs_and_is_told_so() -> None:
    def plain(problem: Problem, response: str, programs: Programs) -> float:
        return 0.0

    async def misplaced(programs: Programs, problem: Problem, response: str) -> float:
        return 0.0

    with pytest.raises(BadConfig, match="async def"):
        wants_programs(plain, "m:plain")
    with pytest.raises(BadConfig, match=r"make it \(problem, response, programs\)"):
        wants_programs(misplaced, "m:misplaced")
