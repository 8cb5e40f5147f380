"""Mathematics: the last box of a response is compared with the right answer, whatever is written there."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deepcoder_contracts.judge import Verdict
from deepcoder_trainer.problems.answers import last_boxed
from deepcoder_trainer.problems.rows import RowError, problem_from_row
from deepcoder_trainer.rollout import answers as answers_module
from deepcoder_trainer.rollout.answers import AnswerVerifier
from deepcoder_trainer.rollout.reward import JudgeReward
from deepcoder_trainer.types import Problem

PROBLEM = Problem("m-1", "deepscaler", "What is 5 times 5?", (), answer="25")


@pytest_asyncio.fixture
async def verifier() -> AsyncIterator[AnswerVerifier]:
    made = AnswerVerifier()
    yield made
    await made.close()


def landlock_version() -> int:
    return max(0, int(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1)))


class NoJudge:
    """A judge that must not be asked."""

    errors = capacity = 0


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{25}", "25"),
        (r"\boxed{24} or rather \boxed{25}", "25"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ {a}{b} } and", "{a}{b}"),
        (r"\boxed{24} \boxed{cut", "24"),
        (r"<think>\boxed{24}</think> It is \boxed{25}.", "25"),
        (r"<think>\boxed{24}</think> It is 24.", None),
        (r"\fboxed{7}", "7"),
        (r"\boxed{1} {\boxed{2}", "2"),
        (r"\boxed{1 \boxed{2}", "2"),
        (r"\boxed{1 {\boxed{2}", "2"),
        (r"} \boxed{3} }", "3"),
        (r"\boxed{\boxed{4}}", "4"),
        (r"\boxed {5}", "5"),
        (r"25", None),
        (r"\boxed{", None),
        ("", None),
    ],
)
def test_the_last_whole_box_is_the_answer(response: str, answer: str | None) -> None:
    assert last_boxed(response) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{1}" * 20_000, "1"),
        (r"\boxed{" * 20_000, None),
        (r"\boxed{1}" + r"\boxed{" * 20_000, "1"),
        (r"\boxed{1}" + "{" * 200_000, "1"),
        ("}" * 200_000 + r"\boxed{1}", "1"),
        (r"\boxed{" * 20_000 + "1" + "}" * 20_000, "1"),
    ],
)
def test_a_long_response_of_boxes_is_read_at_once(response: str, answer: str | None) -> None:
    began = time.process_time()
    assert last_boxed(response) == answer
    assert time.process_time() - began < 1


async def test_equal_numbers_are_right_however_they_are_written(verifier: AnswerVerifier) -> None:
    right = [
        ("25", "25"),
        (r"\frac{1}{2}", "0.5"),
        (r"\frac{1}{2}", r"\dfrac{2}{4}"),
        ("(1,2)", r"(1,\, 2)"),
        (r"x^2+1", r"1 + x^2"),
        (r"$\sqrt{8}$", r"2\sqrt{2}"),
        ("1000", "1{,}000"),
        (r"\text{east}", r"\text{ east }"),
    ]
    wrong = [("25", "26"), (r"\frac{1}{2}", "0.51"), ("(1,2)", "(2,1)"), ("7", ""), ("7", r"\frac{"), ("7", "x" * 501)]
    found = await asyncio.gather(*(verifier.compare(gold, given) for gold, given in right + wrong))
    assert found == [Verdict.PASSED] * len(right) + [Verdict.WRONG_ANSWER] * len(wrong)


async def test_what_the_verifier_takes_for_the_same_is_known(verifier: AnswerVerifier) -> None:
    known = {
        ("12", "12_{3}"): "passed",
        ("3", r"3\approx 4"): "passed",
        ("3", "x=3"): "passed",
        ("5", r"5\%"): "passed",
        ("0.05", r"5\%"): "passed",
        ("50", r"50^\circ"): "passed",
        (r"\frac{\sqrt3}{2}", r"\sin(60^\circ)"): "wrong_answer",
        ("2", "1,2,3"): "wrong_answer",
        ("1", r"1 \text{ or } 2"): "wrong_answer",
        ("2", "2=3"): "wrong_answer",
        ("2", r"\{1,2\}"): "wrong_answer",
    }
    assert {(gold, given): (await verifier.compare(gold, given)).value for gold, given in known} == known


async def test_a_right_answer_that_is_no_mathematics_is_told_once(
    verifier: AnswerVerifier, caplog: pytest.LogCaptureFixture
) -> None:
    golds = {"12": True, r"\text{east}": True, r"(-\infty, 3]": True, r"\frac{1}": False, "?": False, "}": False}
    assert {gold: await verifier.reads(gold) for gold in golds} == golds
    assert not caplog.records
    for gold in golds:
        for given in ("17", "18", gold):
            await verifier.compare(gold, given)
    told = [record.args[0] for record in caplog.records if isinstance(record.args, tuple) and record.args]
    assert told == [gold for gold, read in golds.items() if not read]


async def test_what_takes_for_ever_is_ended_and_the_next_is_compared(
    verifier: AnswerVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await verifier.compare("4", r"2+2") is Verdict.PASSED
    monkeypatch.setattr(answers_module, "CPU_SECONDS", 0.4)
    hostile = [r"9^{9^{9^{9}}}", r"\sum_{n=1}^{10^{12}} \frac{1}{n^n}", "(" * 400, r"99999!!^{99999!}"]
    for given in hostile:
        assert await verifier.compare("4", given) in (Verdict.TIME_LIMIT, Verdict.WRONG_ANSWER, Verdict.RUNTIME_ERROR)
    monkeypatch.setattr(answers_module, "CPU_SECONDS", 30.0)
    assert await verifier.compare("4", r"2+2") is Verdict.PASSED


async def test_no_answer_runs_as_python(verifier: AnswerVerifier, tmp_path: Path) -> None:
    sign = tmp_path / "ran"
    for code in (f"__import__('os').mkdir('{sign}')", f"[].__class__.__base__, open('{sign}','w')"):
        assert await verifier.compare("4", code) is not Verdict.PASSED
    assert not sign.exists()


FAKE = """
import json, os, pathlib, signal, sys, time
print('ready', flush=True)
for line in sys.stdin:
    given = json.loads(line)['given']
    word, _, file = given.partition(':')
    if word == 'hang': time.sleep(60)
    if word == 'die': sys.exit(3)
    if word == 'babble': print('?', flush=True)
    if word == 'list': print('[]', flush=True)
    if word == 'crash': os.kill(os.getpid(), signal.SIGSEGV)
    if word == 'killed': os.kill(os.getpid(), signal.SIGKILL)
    if word == 'once' and not pathlib.Path(file).exists():
        pathlib.Path(file).touch()
        sys.exit(3)
    if word == 'late' and not pathlib.Path(file).exists():
        pathlib.Path(file).touch()
        time.sleep(60)
    print(json.dumps({'right': word in ('yes', 'once', 'late'), 'gold_read': True}), flush=True)
"""


async def test_only_what_an_answer_does_twice_is_its_own_doing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(answers_module, "WALL_SECONDS", 1.0)
    verifier = AnswerVerifier((sys.executable, "-c", FAKE))
    asked = {
        "yes": Verdict.PASSED,
        "no": Verdict.WRONG_ANSWER,
        "hang": Verdict.ERROR,
        "die": Verdict.RUNTIME_ERROR,
        "crash": Verdict.RUNTIME_ERROR,
        "babble": Verdict.RUNTIME_ERROR,
        "list": Verdict.RUNTIME_ERROR,
        "killed": Verdict.ERROR,
        f"once:{tmp_path}/died": Verdict.PASSED,
        f"late:{tmp_path}/late": Verdict.PASSED,
        "no ": Verdict.WRONG_ANSWER,
    }
    assert {given: await verifier.compare("gold", given) for given in asked} == asked
    await verifier.close()


def processes(verifier: AnswerVerifier) -> list[int]:
    return [process.pid for process in verifier._all]


async def test_a_verifier_that_was_killed_while_it_waited_costs_no_answer(verifier: AnswerVerifier) -> None:
    assert await verifier.compare("1", "2/2") is Verdict.PASSED
    for pid in processes(verifier):
        os.kill(pid, signal.SIGKILL)
    assert await verifier.compare("1", "2/2") is Verdict.PASSED


async def test_a_verifier_that_gets_no_cpu_costs_no_answer(
    verifier: AnswerVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await verifier.compare("1", "2/2") is Verdict.PASSED
    monkeypatch.setattr(answers_module, "CPU_SECONDS", 1.0)
    (stopped,) = processes(verifier)
    os.kill(stopped, signal.SIGSTOP)
    late = asyncio.create_task(verifier.compare("1", "2/2"))
    await asyncio.sleep(1.5)
    assert not late.done(), "more than the limit has passed, but none of it was the comparison's"
    os.kill(stopped, signal.SIGCONT)
    assert await late is Verdict.PASSED


@pytest.mark.parametrize(
    ("comparison", "verdict"),
    [
        ("b'x' * (1 << 40)", Verdict.RUNTIME_ERROR),
        ("[][0]", Verdict.RUNTIME_ERROR),
        ("sum(iter(int, 1))", Verdict.TIME_LIMIT),
        ("9**9**9**9", Verdict.TIME_LIMIT),
        ("(True, True)", Verdict.PASSED),
    ],
)
async def test_a_comparison_that_breaks_or_takes_too_long_is_the_answers_own(
    comparison: str, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers_module, "CPU_SECONDS", 0.5)
    monkeypatch.setattr(answers_module, "TRIES", 1)
    program = (
        "import sys; import deepcoder_trainer.rollout.answer_worker as worker\n"
        f"worker._comparison = lambda: lambda gold, given: {comparison}\n"
        "sys.exit(worker.main())\n"
    )
    verifier = AnswerVerifier((sys.executable, "-c", program))
    assert await verifier.compare("gold", "given") is verdict
    await verifier.close()


ATTEMPTS = {
    "environment": "open(f'/proc/{os.getppid()}/environ').read()",
    "memory": "open(f'/proc/{os.getppid()}/mem', 'rb').close()",
    "TCP": "socket.create_connection(given.split(':'), 5)",
    "writing": "open('/tmp/deepcoder-answer-wrote', 'w')",
    "a program": "subprocess.run(['/bin/true'])",
    "a signal": "os.kill(os.getppid(), 0)",
}


@pytest.mark.skipif(not landlock_version(), reason="this kernel has no Landlock")
@pytest.mark.parametrize("attempt", ATTEMPTS)
async def test_the_process_that_reads_answers_reaches_nothing_else(attempt: str) -> None:
    if landlock_version() < {"TCP": 4, "a signal": 6}.get(attempt, 1):
        pytest.skip("this kernel's Landlock has no such rule")
    program = (
        "import os, socket, subprocess, sys; import deepcoder_trainer.rollout.answer_worker as worker\n"
        "def compare(gold, given):\n"
        f"    try: {ATTEMPTS[attempt]}\n"
        "    except PermissionError: return False, True\n"
        "    return True, True\n"
        "worker._comparison = lambda: compare\n"
        "sys.exit(worker.main())\n"
    )
    verifier = AnswerVerifier((sys.executable, "-c", program))
    async with await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        assert await verifier.compare("gold", f"{host}:{port}") is Verdict.WRONG_ANSWER
    await verifier.close()


async def test_a_kernel_that_confines_nothing_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    program = (
        "import sys; import deepcoder_trainer.rollout.answer_worker as worker\n"
        "worker._comparison = lambda: lambda gold, given: (True, True)\n"
        "worker.confine = lambda: False\n"
        "sys.exit(worker.main())\n"
    )
    verifier = AnswerVerifier((sys.executable, "-c", program))
    await verifier.compare("gold", "given")
    await verifier.close()
    await verifier.compare("gold", "given")
    await verifier.close()
    assert [r.message for r in caplog.records if "not confined" in r.message] == [caplog.records[0].message]


async def test_without_a_verifier_there_is_no_outcome() -> None:
    for command in ((sys.executable, "-c", "import sys; sys.exit(1)"), ("/nowhere/verifier",)):
        verifier = AnswerVerifier(command)
        reward = JudgeReward(NoJudge(), verifier)  # type: ignore[arg-type]
        assert (await reward(PROBLEM, r"\boxed{5 \cdot 5}", "k")).reward is None
        assert (await reward(PROBLEM, r"\boxed{25}", "k")).reward == 1.0, "what is written alike needs none"
        await verifier.close()


async def test_mathematics_is_rewarded_like_code(verifier: AnswerVerifier) -> None:
    reward = JudgeReward(NoJudge(), verifier)  # type: ignore[arg-type]
    outcomes = [await reward(PROBLEM, text, "k") for text in (r"\boxed{5 \times 5}", r"\boxed{26}", "it is 25")]
    assert [(o.reward, o.verdict) for o in outcomes] == [(1.0, "passed"), (0.0, "wrong_answer"), (0.0, "no_answer")]


def test_a_row_has_tests_or_an_answer() -> None:
    row: dict[str, Any] = {"id": "m-1", "source": "deepscaler", "prompt": "What is 5 times 5?", "answer": "25"}
    assert problem_from_row(row) == replace(PROBLEM)
    for bad in ({**row, "tests": [{"input": "", "output": ""}]}, {"id": "m", "prompt": "p"}):
        with pytest.raises(RowError, match="exactly one of tests and answer"):
            problem_from_row(bad)


@pytest.mark.parametrize("source", ["", "aime"])
def test_the_published_schema_has_mathematics(source: str) -> None:
    problem = problem_from_row(
        {
            "data_source": source,
            "prompt": [{"role": "user", "content": "What?"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": r"\frac{1}{2}"},
            "extra_info": {"split": "train", "index": 3},
        }
    )
    assert (problem.answer, problem.tests, problem.id) == (r"\frac{1}{2}", (), f"{source or 'math'}-train-3")
