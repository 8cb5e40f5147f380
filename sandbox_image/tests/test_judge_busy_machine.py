"""Under a load that leaves a program a fraction of a processor, time spent waiting for one is nobody's time limit."""

import os
import subprocess
import sys
import time

import pytest

from deepcoder_contracts.judge import Verdict
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.worker.starvation import Starvation

IN_A_THREAD = """
import threading, time
def main():
    until = time.thread_time() + 0.4
    while time.thread_time() < until: pass
    print(3)
thread = threading.Thread(target=main)
thread.start()
thread.join()
"""

WAITING_THREADS = """
import os, threading, time
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.worker.starvation import Starvation
starvation = Starvation(os.getpid())
starvation.mark()
lock = threading.Lock()
lock.acquire()
waiting = [threading.Thread(target=lock.acquire, args=(True, 0.3)) for _ in range(20)]
before = time.process_time()
for thread in waiting:
    thread.start()
for thread in waiting:
    thread.join()
print(starvation.seconds(time.process_time() - before))
"""


@pytest.fixture
def load():
    """A dozen busy processes a processor, each in a session of its own, since a scheduler may be fair to sessions."""
    command = [sys.executable, "-c", "while True: pass"]
    count = 12 * len(os.sched_getaffinity(0))
    busy = [subprocess.Popen(command, start_new_session=True) for _ in range(count)]
    yield
    for process in busy:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("scoring", "time_limit_s"), [("strict", 0.6), ("livecodebench", 1.0)])
def test_program_that_works_in_a_thread_is_not_blamed_for_a_busy_machine(judge_once, load, scoring, time_limit_s):
    answer = judge_once(IN_A_THREAD, ("", "3"), scoring=scoring, time_limit_s=time_limit_s)
    assert [verdict.verdict for verdict in answer.verdicts] == [Verdict.PASSED], answer


def test_threads_that_wait_for_each_other_are_not_starved():
    # In a process of its own: what other threads of this one ever waited would count.
    told = subprocess.run(
        [sys.executable, "-c", WAITING_THREADS], capture_output=True, text=True, timeout=60, check=True
    )
    assert float(told.stdout) < 0.3


def test_sum_over_threads_counts_only_as_a_multiple_of_the_time_they_ran(monkeypatch):
    starvation = Starvation(1)
    monkeypatch.setattr(starvation, "_threads", lambda: [str(number) for number in range(1, 201)])
    monkeypatch.setattr(starvation, "_read", lambda thread: 2_000_000_000)
    assert starvation.seconds(cpu_s=0.0) == 2.0  # what one thread waited always counts
    assert starvation.seconds(cpu_s=1.0) == 8.0
    assert starvation.seconds(cpu_s=100.0) == 400.0


def test_thread_that_has_ended_and_what_was_before_the_mark_are_accounted_for(monkeypatch):
    starvation = Starvation(1)
    waits = {"1": 5_000_000_000, "2": 3_000_000_000}
    monkeypatch.setattr(starvation, "_threads", lambda: list(waits))
    monkeypatch.setattr(starvation, "_read", lambda thread: waits[thread])
    starvation.mark()
    assert starvation.seconds(cpu_s=9.0) == 3.0
    del waits["2"]
    waits["1"] += 1_000_000_000
    assert starvation.seconds(cpu_s=9.0) == 4.0
    assert Starvation(1 << 30).seconds(cpu_s=9.0) == 0.0


@pytest.mark.parametrize("scoring", ["strict", "livecodebench"])
def test_program_that_gets_no_processor_before_its_clients_deadline_has_no_verdict(any_slot, make, load, scoring):
    code = "import time\nwhile time.process_time() < 0.4: pass\nprint(3)"
    request = make(code, ("", "3"), ("", "3"), scoring=scoring, time_limit_s=1.0)
    any_slot.ensure_zygote(harness=scoring == "livecodebench")
    answer = any_slot.judge(Submission(request, tuple(request.tests)), time.monotonic() + 0.6)  # and needs 0.8
    assert answer.passed is None
    assert {verdict.verdict for verdict in answer.verdicts} == {Verdict.ERROR}
