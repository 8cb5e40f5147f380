"""The judge of the trainer's own: a real deepcoder-sandbox child on a Unix socket, and rewards through it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deepcoder_contracts.judge import Kind, Scoring, TestCase
from deepcoder_contracts.manifest import RunIdentity
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.judge import local as local_module
from deepcoder_trainer.judge.client import JudgeClient
from deepcoder_trainer.judge.connect import local_judge
from deepcoder_trainer.judge.local import LocalJudge
from deepcoder_trainer.judge.submission import JudgedProblem
from deepcoder_trainer.rollout import reward as reward_module
from deepcoder_trainer.rollout.reward import JudgeReward
from deepcoder_trainer.types import Problem

RUN = RunIdentity(namespace="local", name="run", uid="01234567-89ab-cdef-0123-456789abcdef")
DOUBLE = Problem(
    "double",
    "test",
    "double the number",
    (TestCase(input="3\n", output="6\n"), TestCase(input="10\n", output="20\n")),
    time_limit_s=5.0,
)


@pytest_asyncio.fixture
async def judge(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalJudge]:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    judge = LocalJudge(workers=1)
    try:
        await judge.ready()
        yield judge
    finally:
        judge.close()


def client_of(judge: LocalJudge) -> JudgeClient:
    return local_judge(judge, RUN)


def fenced(code: str) -> str:
    return f"Let me think.\n```python\n{code}\n```\nDone."


@pytest.mark.parametrize(
    ("response", "reward", "verdict"),
    [
        (fenced("print(2*int(input()))"), 1.0, "passed"),
        (fenced("print(3*int(input()))"), 0.0, "wrong_answer"),
        (fenced("print(2*int(input())"), 0.0, "compile_error"),
        (fenced("raise SystemExit(3)"), 0.0, "runtime_error"),
        ("print(2*int(input()))", 0.0, "no_code"),
        (fenced("print('\0')"), 0.0, "compile_error"),
    ],
)
async def test_a_response_earns_what_its_program_does(
    judge: LocalJudge, response: str, reward: float, verdict: str
) -> None:
    client = client_of(judge)
    outcome = await JudgeReward(client)(DOUBLE, response, "sampling/0/0")
    await client.close()
    assert (outcome.reward, outcome.verdict) == (reward, verdict)


async def test_programs_find_no_secret_of_the_trainers(judge: LocalJudge) -> None:
    code = "import os\nx = int(input())\nprint(2 * x if 'AWS_SECRET_ACCESS_KEY' not in os.environ else 0)"
    client = client_of(judge)
    outcome = await JudgeReward(client)(DOUBLE, fenced(code), "sampling/0/1")
    await client.close()
    assert outcome.verdict == "passed"
    environment = Path(f"/proc/{judge._child.pid}/environ").read_bytes()
    assert b"hidden" not in environment


async def test_a_judge_that_was_killed_is_started_again_and_the_submission_is_judged(judge: LocalJudge) -> None:
    watching = asyncio.create_task(judge.watch())
    client = client_of(judge)
    first = judge._child.pid
    os.kill(first, signal.SIGKILL)
    outcome = await JudgeReward(client)(DOUBLE, fenced("print(2*int(input()))"), "sampling/0/2")
    watching.cancel()
    await client.close()
    assert outcome.verdict == "passed"
    assert judge._child.pid != first


async def watch_one_that_ends_at_once(judge: LocalJudge, monkeypatch: pytest.MonkeyPatch, window: float) -> None:
    monkeypatch.setattr(local_module, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(local_module, "RESTART_SECONDS", window)
    monkeypatch.setattr(LocalJudge, "_spawn", lambda _: subprocess.Popen(["/bin/false"]))
    judge._child.kill()
    judge._child.wait(10)
    async with asyncio.timeout(3):
        await judge.watch()


async def test_a_judge_that_ends_over_and_over_is_told(judge: LocalJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="ended 4 times within"):
        await watch_one_that_ends_at_once(judge, monkeypatch, window=600.0)


async def test_a_judge_may_end_now_and_then_for_ever(judge: LocalJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TimeoutError):
        await watch_one_that_ends_at_once(judge, monkeypatch, window=0.05)


async def test_a_missing_sandbox_is_refused_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_module.sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BadConfig, match="install deepcoder-sandbox"):
        LocalJudge()


def test_an_id_ends_in_the_codes_digest_so_that_it_never_has_two_contents() -> None:
    one, other = (JudgedProblem(DOUBLE).submission(code, "sampling/7/1").request for code in ("a", "b"))
    assert one.id != other.id
    assert one.id.startswith("sampling/7/1/")
    assert len(one.id.rsplit("/", 1)[1]) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"tests": (TestCase(input="3\n", output="7\n"),)},
        {"tests": (TestCase(input="x" * 20_000, output="7\n"),)},
        {"time_limit_s": 6.0},
        {"memory_limit_mb": 64},
        {"scoring": Scoring.LIVECODEBENCH},
        {"kind": Kind.FUNCTION, "fn_name": "double"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_same_program_against_other_tests_or_limits_has_another_id(change: dict[str, Any]) -> None:
    one, other = (
        JudgedProblem(p).submission("a", "evaluation/set/7/1").request for p in (DOUBLE, replace(DOUBLE, **change))
    )
    again = JudgedProblem(replace(DOUBLE)).submission("a", "evaluation/set/7/1").request
    assert one.id != other.id
    assert one.id == again.id


async def test_a_problem_s_tests_are_worked_out_once_and_forgotten_with_it(
    judge: LocalJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    class Counted(JudgedProblem):
        def __init__(self, problem: Problem) -> None:
            made.append(problem.id)
            super().__init__(problem)

    monkeypatch.setattr(reward_module, "JudgedProblem", Counted)
    client = client_of(judge)
    reward, problem = JudgeReward(client), replace(DOUBLE)
    for index in range(3):
        await reward(problem, fenced("print(2*int(input()))"), f"sampling/0/{index}")
    await client.close()
    assert made == ["double"]
    del problem
    gc.collect()
    assert reward._judged == {}
