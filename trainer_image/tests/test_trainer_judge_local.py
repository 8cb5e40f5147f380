"""The judge of the trainer's own: a real deepcoder-sandbox child on a Unix socket, and rewards through it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

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


@pytest.fixture(scope="module")
def judge() -> Iterator[LocalJudge]:
    """One for all tests that only ask it: it attacks itself before it is ready, for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
        judge = LocalJudge(workers=1)
    try:
        asyncio.run(judge.ready())
        yield judge
    finally:
        judge.close()


@pytest.fixture
def mortal() -> Iterator[LocalJudge]:
    """One that has just been started, and may be killed."""
    judge = LocalJudge(workers=1)
    yield judge
    judge.close()


def test_its_programs_at_once_are_as_many_as_the_processors_that_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: commands.append(command))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        folder = LocalJudge()._folder
    finally:
        os.sched_setaffinity(0, before)
    folder.remove()
    assert commands[0][-2:] == ["--slots", "1"], "of all that the machine has most may be others'"


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
        (fenced("print(2*int(input()))  # \ud83d"), 1.0, "passed"),
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
    processes = [judge._child.pid, *descendants(judge._child.pid)]
    assert len(processes) > 1
    for process in processes:
        environment = Path(f"/proc/{process}/environ").read_bytes()
        assert b"hidden" not in environment
        names = {name.split(b"=")[0].decode() for name in environment.split(b"\0") if name}
        assert not {name for name in names if re.search("AWS|SECRET|TOKEN|KEY|HF_", name)}


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and theirs."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
    found = [pid]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found[1:]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


TRAINER = """
import asyncio, sys, time
from deepcoder_trainer.judge.local import LocalJudge
judge = LocalJudge(workers=1)
asyncio.run(judge.ready())
print(judge._child.pid, flush=True)
time.sleep(300)
"""


def test_a_judge_and_all_that_it_started_end_with_a_trainer_that_is_killed() -> None:
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER], stdout=subprocess.PIPE)
    assert trainer.stdout is not None
    judge = int(trainer.stdout.readline())
    begun = time.monotonic() + 120
    while not descendants(judge):  # it says so before all that it starts is there
        assert time.monotonic() < begun
        time.sleep(0.05)
    processes = [judge, *descendants(judge)]
    trainer.kill()
    trainer.wait(10)
    deadline = time.monotonic() + 120
    while any(alive(process) for process in processes):
        assert time.monotonic() < deadline, [process for process in processes if alive(process)]
        time.sleep(0.05)


def test_a_judge_whose_trainer_has_ended_before_it_began_does_not_begin() -> None:
    orphan = [sys.executable, "-c", local_module._DIE_WITH_PARENT, str(os.getpid() + 1), "/bin/echo", "begun"]
    ended = subprocess.run(orphan, capture_output=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (1, b"")


SPY = """
import sys
from deepcoder_trainer.judge import local
HEAVY = {"torch", "ray", "vllm", "transformers", "boto3", "botocore", "numpy", "pyarrow"}
def began(self, workers=None):
    print(sorted(HEAVY & set(sys.modules)))
    sys.exit(7)
local.LocalJudge.__init__ = began
from deepcoder_trainer.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["run", "evaluate"])
def test_it_is_started_before_torch_or_anything_that_reads_secrets_is_loaded(tmp_path: Path, command: str) -> None:
    if command == "run":
        example = Path(__file__).parents[2] / "examples" / "local-demo.yaml"
        arguments = ["run", "--config", str(example)]
    else:
        arguments = ["evaluate", "--model", "/m", "--datasets", "a=/d", "--output-dir", str(tmp_path)]
    ended = subprocess.run([sys.executable, "-c", SPY, *arguments], capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (7, b"[]\n"), ended.stderr


async def test_a_judge_that_was_killed_is_started_again_and_the_submission_is_judged(mortal: LocalJudge) -> None:
    await mortal.ready()
    watching = asyncio.create_task(mortal.watch())
    client = client_of(mortal)
    first = mortal._child.pid
    os.kill(first, signal.SIGKILL)
    outcome = await JudgeReward(client)(DOUBLE, fenced("print(2*int(input()))"), "sampling/0/2")
    watching.cancel()
    await client.close()
    assert outcome.verdict == "passed"
    assert mortal._child.pid != first


async def watch_one_that_ends_at_once(
    judge: LocalJudge, monkeypatch: pytest.MonkeyPatch, window: float, seconds: float
) -> None:
    monkeypatch.setattr(local_module, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(local_module, "RESTART_SECONDS", window)
    monkeypatch.setattr(LocalJudge, "_spawn", lambda _: subprocess.Popen(["/bin/false"]))
    judge._child.kill()
    judge._child.wait(10)
    async with asyncio.timeout(seconds):
        await judge.watch()


async def test_a_judge_that_ends_over_and_over_is_told(mortal: LocalJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="ended 4 times within"):
        await watch_one_that_ends_at_once(mortal, monkeypatch, window=600.0, seconds=120)


async def test_a_judge_may_end_now_and_then_for_ever(mortal: LocalJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TimeoutError):
        await watch_one_that_ends_at_once(mortal, monkeypatch, window=0.05, seconds=3)


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
