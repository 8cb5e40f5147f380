"""What the hosted harness leaves out of the wall clock: waits that others cause, in any thread, and no more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from deepcoder_contracts.judge import TestCase
from deepcoder_trainer.judge.submission import JudgedProblem
from deepcoder_trainer.judge.together import harness, report
from deepcoder_trainer.judge.together.job import Job
from deepcoder_trainer.types import Problem

NEIGHBOURS = 8
WORKER = (
    "import threading, time\n"
    "def work():\n"
    "    until = time.thread_time() + {seconds}\n"
    "    while time.thread_time() < until: pass\n"
    "for _ in range({threads}):\n"
    "    thread = threading.Thread(target=work); thread.start(); thread.join()\n"
)
HERD = (
    "import threading, time\n"
    "def nap():\n"
    "    while True:\n"
    "        now = time.monotonic()\n"
    "        time.sleep(0.01 - now % 0.01)\n"
    "for _ in range(60): threading.Thread(target=nap, daemon=True).start()\n"
    "time.sleep(6)\n"
)


def watched(code: str, wall: float, cpu: float = 10.0) -> dict[str, Any]:
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    return harness._watch(child, cpu, wall)


@pytest.fixture
def one_busy_processor() -> Iterator[None]:
    """This test's children share one processor with neighbours that never sleep."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(NEIGHBOURS)]
    try:
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_wait_of_any_thread_that_others_cause_is_left_out(
    one_busy_processor: None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "_CEILING_MORE_SECONDS", 60.0)
    one = watched(WORKER.format(seconds=0.2 / threads, threads=threads), wall=0.6)
    assert (one["killed"], one["status"]) == (None, 0), one


def test_threads_that_wake_together_put_off_no_limit() -> None:
    assert watched(HERD, wall=0.5)["killed"] == "wall"


def test_a_program_that_sleeps_meets_its_wall_clock_limit_beside_neighbours_too(one_busy_processor: None) -> None:
    assert watched("import time; time.sleep(6)", wall=0.5)["killed"] == "wall"


def test_a_program_that_others_keep_from_running_past_the_ceiling_is_not_judged(
    one_busy_processor: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "_CEILING_MORE_SECONDS", 0.0)
    one = watched(WORKER.format(seconds=2.0, threads=1), wall=0.3)
    assert one["killed"] == "starved"
    problem = Problem("p", "test", "", (TestCase(input="", output=""),), time_limit_s=1.0)
    request = JudgedProblem(problem).submission("", "g/0").request
    with pytest.raises(report.BadReport, match="from the CPUs"):
        report._verdict(Job(request, problem.tests), problem.tests[0], report._Run(killed="starved"))
