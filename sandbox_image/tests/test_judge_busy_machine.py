"""Under a load that leaves a program a fraction of a processor, time spent waiting for one is nobody's time limit."""

import itertools
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from judge_harness import descendants
from scripted_slots import wait_until

from deepcoder_contracts.judge import Kind, Tier, Verdict
from deepcoder_sandbox import limits
from deepcoder_sandbox.execution import Program, execute
from deepcoder_sandbox.memory_file import MemoryFile
from deepcoder_sandbox.slot import Slot
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.worker.starvation import Starvation, may_go_on
from deepcoder_sandbox.zygote_process import ZygoteConfig

IN_A_THREAD = """
import threading, time
def main():
    until = time.thread_time() + 0.2
    while time.thread_time() < until: pass
    print(3)
thread = threading.Thread(target=main)
thread.start()
thread.join()
"""

TAKING_TURNS = """
import threading, time
turn = threading.Lock()
def main(number):
    left = 12
    while left:
        with turn:
            until = time.thread_time() + 0.002
            while time.thread_time() < until: pass
        left -= 1
threads = [threading.Thread(target=main, args=(number,)) for number in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(3)
"""

HERD = """
import threading, time
threading.stack_size(65536)
def gather():
    while True: time.sleep(0.004 - time.monotonic() % 0.004)
for _ in range(100): threading.Thread(target=gather, daemon=True).start()
time.sleep(60)
"""

BUSY = """
import resource
resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
while True: pass
"""
"""A few times what a program here needs. On a busy machine nobody gets that for long, and without this limit eight such
processes would keep a processor from all other tests until then."""

WAITING_THREADS = """
import os, threading, time
from deepcoder_sandbox.slot import Slot
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.worker.starvation import Starvation
from deepcoder_sandbox.zygote_process import ZygoteConfig
starvation = Starvation(os.getpid(), time.process_time, 10, time.monotonic())
starvation.mark()
lock = threading.Lock()
lock.acquire()
waiting = [threading.Thread(target=lock.acquire, args=(True, 0.3)) for _ in range(20)]
for thread in waiting:
    thread.start()
for thread in waiting:
    thread.join()
print(starvation.seconds())
"""


@contextmanager
def held_to_one_processor():
    """What this thread starts meanwhile is held to it, too; other tests have the other processors."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.fixture(scope="module")
def held_slot():
    """A slot whose programs have one processor."""
    slot = Slot(ZygoteConfig(tier=Tier.LANDLOCK), "test")
    with held_to_one_processor():
        for harness in (False, True):
            slot.ensure_zygote(harness=harness)
    yield slot
    slot.close()


@pytest.fixture
def crowded(held_slot):
    """The same, while eight busy processes share that processor, each in a session of its own, since a scheduler may
    be fair to sessions."""
    busy = []
    with held_to_one_processor():
        try:
            command = [sys.executable, "-S", "-c", BUSY]
            busy += [subprocess.Popen(command, start_new_session=True) for _ in range(8)]
            yield held_slot
        finally:
            for process in busy:
                process.kill()
                process.wait()


@pytest.mark.parametrize("program", [IN_A_THREAD, TAKING_TURNS], ids=["in one thread", "in turns"])
@pytest.mark.parametrize(("scoring", "time_limit_s"), [("strict", 0.4), ("livecodebench", 1.0)])
def test_program_that_works_in_threads_is_not_blamed_for_a_busy_machine(crowded, make, program, scoring, time_limit_s):
    request = make(program, ("", "3"), scoring=scoring, time_limit_s=time_limit_s)
    answer = crowded.judge(Submission(request, tuple(request.tests)), time.monotonic() + 120)
    assert [verdict.verdict for verdict in answer.verdicts] == [Verdict.PASSED], answer


def test_threads_that_wait_for_each_other_are_not_starved():
    # In a process of its own: what other threads of this one ever waited would count.
    before_s, own_s = processors_used_s(), of_children_s()
    told = subprocess.run(
        [sys.executable, "-c", WAITING_THREADS], capture_output=True, text=True, timeout=60, check=True
    )
    by_others_s = processors_used_s() - before_s - (of_children_s() - own_s)
    assert float(told.stdout) < 0.3 + by_others_s  # who may well have kept it waiting


def of_children_s():
    """CPU seconds of processes that this one has waited for."""
    return sum(os.times()[2:4])


def processors_used_s():
    """Seconds of all processors so far, their idle ones left out."""
    ticks = [int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def test_threads_that_wake_together_put_off_a_limit_for_no_longer_than_others_keep_them_waiting(any_slot):
    bounds = limits.of_one_test(1.0, 512, 1 << 20)
    zygote, before_s = any_slot.ensure_zygote(), processors_used_s()
    with MemoryFile("code", HERD.encode(), sealable=True) as code:
        program = Program(code, len(HERD.encode()), Kind.STDIN)
        ended = execute(zygote, program, b"", bounds, time.monotonic() + 60, 4096).ended
    by_others_s = processors_used_s() - before_s - ended.cpu_s
    assert ended.killed_for in ("wall", "cpu"), ended
    assert ended.starved_s < by_others_s + ended.cpu_s + 0.5, (ended, by_others_s)


@pytest.fixture
def followed(monkeypatch):
    """A process of two threads that never are asked, and what is to be seen of it."""
    seen = SimpleNamespace(waits={"1": 0, "2": 0}, clock=itertools.cycle([0.0]), states="RS", now=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: seen.now)
    starvation = Starvation(1, lambda: next(seen.clock), 60.0, seen.now)
    monkeypatch.setattr(starvation, "_threads", lambda: list(seen.waits))
    monkeypatch.setattr(starvation, "_read", lambda thread: seen.waits[thread])
    monkeypatch.setattr(starvation, "states", lambda: seen.states)
    seen.starvation = starvation
    return seen


def sampled(seen, seconds):
    seen.now += seconds
    seen.starvation.sample_at = seen.now
    seen.starvation.sample()


def test_sum_over_threads_counts_only_as_far_as_the_process_was_stalled(followed):
    followed.waits.update({"1": 2_000_000_000, "2": 1_500_000_000})
    followed.now += 3.0
    assert followed.starvation.seconds() == 2.0  # what one thread waited always counts
    sampled(followed, 0.0)
    assert followed.starvation.seconds() == 3.0
    followed.states = "SS"
    sampled(followed, 10.0)
    assert followed.starvation.seconds() == 3.0
    followed.states, followed.clock = "RS", itertools.count()
    sampled(followed, 10.0)  # one waits, while another runs
    assert followed.starvation.seconds() == 3.0
    followed.clock = itertools.cycle([1.0])
    sampled(followed, 10.0)
    assert followed.starvation.seconds() == 3.5


def test_what_the_kernel_holds_a_process_for_counts_up_to_half_of_the_time(followed):
    followed.states = "DS"
    sampled(followed, 2.0)
    sampled(followed, 2.0)
    followed.states = "SS"
    sampled(followed, 6.0)
    assert followed.starvation.seconds() == 4.0
    followed.states = "DD"
    sampled(followed, 10.0)
    assert followed.starvation.seconds() == 10.0
    followed.clock = itertools.cycle([8.0])  # of which 8 are its own
    assert followed.starvation.seconds() == 10.0
    followed.clock = itertools.cycle([15.0])
    assert followed.starvation.seconds() == 5.0


def test_held_and_waiting_together_are_forged_up_to_half_of_the_time(followed):
    followed.states, followed.clock = "D", itertools.cycle([3.0])
    followed.starvation._used_s = 3.0
    sampled(followed, 10.0)
    followed.waits["1"] = (
        3_000_000_000  # as long as it ran: on a machine with nothing else to do it may have forged that
    )
    assert followed.starvation.seconds() == 5.0
    followed.waits["1"] = 6_000_000_000  # not all of that
    assert followed.starvation.seconds() == 6.5


def test_process_is_not_held_while_one_of_its_threads_runs(followed):
    followed.states = "RD"
    sampled(followed, 10.0)
    assert followed.starvation.seconds() == 0.0  # ready, and no sum of waits
    followed.states, followed.clock = "DS", itertools.count()
    sampled(followed, 10.0)
    assert followed.starvation.seconds() == 0.0


def test_time_in_which_nobody_looked_does_not_count_as_held(followed):
    followed.now += 50.0
    followed.starvation.draw()  # the first look
    followed.states = "D"
    sampled(followed, 10.0)
    assert followed.starvation.seconds() == 10.0
    followed.starvation.mark()
    assert followed.starvation.seconds() == 0.0


@pytest.mark.parametrize(
    ("states", "over_s", "expected"),
    [("SRS", 1e9, True), ("SD", 5.0, True), ("SD", 6.0, False), ("SS", 0.1, False), ("", 0.1, False)],
)
def test_limit_that_is_over_waits_for_who_is_ready_and_a_while_for_who_is_held(states, over_s, expected):
    assert may_go_on(states, over_s) is expected


def test_what_a_process_ran_is_not_taken_for_waiting(followed):
    followed.waits.update({"1": 9_000_000_000, "2": 9_000_000_000})
    sampled(followed, 10.0)  # a thread ran up to the sample: the clock of its process lags
    followed.clock = itertools.cycle([6.0])
    assert followed.starvation.seconds() == 4.0
    followed.starvation.mark()
    followed.waits.update({"1": 18_000_000_000, "2": 18_000_000_000})
    followed.now += 10.0
    assert followed.starvation.seconds() == 9.0


def test_sample_that_is_not_due_is_not_taken(followed):
    followed.waits.update({"1": 20_000_000, "2": 15_000_000})
    followed.now = followed.starvation.sample_at - 0.001
    followed.starvation.sample()
    assert followed.starvation.seconds() == 0.02


def test_moments_of_the_samples_are_not_those_of_the_module_random():
    drawn = set()
    for _ in range(3):
        random.seed(0)
        starvation = Starvation(os.getpid(), time.process_time, 60.0, 0.0)
        before = time.monotonic()
        starvation.draw()
        drawn.add(round(starvation.sample_at - before, 3))
    assert len(drawn) > 1


def test_thread_that_has_ended_and_what_was_before_the_mark_are_accounted_for(followed):
    followed.waits.update({"1": 5_000_000_000, "2": 3_000_000_000})
    followed.starvation.mark()
    sampled(followed, 60.0)
    assert followed.starvation.seconds() == 3.0
    del followed.waits["2"]
    followed.waits["1"] += 1_000_000_000
    assert followed.starvation.seconds() == 4.0


def test_process_that_is_gone_has_not_waited():
    assert Starvation(1 << 30, lambda: None, 9.0, time.monotonic()).seconds() == 0.0


@pytest.mark.parametrize("scoring", ["strict", "livecodebench"])
def test_program_that_gets_no_processor_before_its_clients_deadline_has_no_verdict(crowded, make, scoring):
    code = "import time\nwhile time.process_time() < 0.4: pass\nprint(3)"
    request = make(code, ("", "3"), ("", "3"), scoring=scoring, time_limit_s=1.0)
    answer = crowded.judge(Submission(request, tuple(request.tests)), time.monotonic() + 0.6)  # and needs 0.8
    assert answer.passed is None
    assert {verdict.verdict for verdict in answer.verdicts} == {Verdict.ERROR}


HELD = """
import os
def hold():
    os.posix_spawn("/bin/true", ["true"], {{}}, file_actions=[(os.POSIX_SPAWN_OPEN, 9, {fifo!r}, os.O_RDONLY, 0)])
"""
"""Where nothing confines it, a program has the kernel hold it: what it starts opens a pipe first, to which nobody
writes, and the C library has the program wait for that."""


@pytest.fixture
def hold(tmp_path):
    """The text of a function that holds its program, and what lets that go."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def let_go():
        os.close(os.open(fifo, os.O_RDWR))

    yield HELD.format(fifo=str(fifo)), let_go
    let_go()


@pytest.fixture(scope="module")
def unconfined_slot():
    slot = Slot(ZygoteConfig(tier=Tier.UNCONFINED), "test")
    for harness in (False, True):
        slot.ensure_zygote(harness=harness)
    yield slot
    slot.close()


@pytest.mark.parametrize(("scoring", "held_s"), [("strict", 1.5), ("livecodebench", 2.5)])
def test_program_that_the_kernel_holds_is_not_blamed_for_it(unconfined_slot, make, hold, scoring, held_s):
    program, let_go = hold
    request = make(f"{program}hold()\nprint(3)", ("", "3"), scoring=scoring, time_limit_s=0.3)
    zygote = unconfined_slot.ensure_zygote(harness=scoring == "livecodebench").pid

    def let_go_later():
        wait_until(lambda: any(process.state == "D" for process in descendants(zygote)))
        time.sleep(held_s)  # past all limits of the test
        let_go()

    later = threading.Thread(target=let_go_later)
    later.start()
    answer = unconfined_slot.judge(Submission(request, tuple(request.tests)), time.monotonic() + 60)
    later.join()
    assert [verdict.verdict for verdict in answer.verdicts] == [Verdict.PASSED], answer


def test_program_that_has_itself_held_meets_its_limit_all_the_same(unconfined_slot, make, hold):
    request = make(f"{hold[0]}hold()\nprint(3)", ("", "3"), time_limit_s=0.1)
    answer = unconfined_slot.judge(Submission(request, tuple(request.tests)), time.monotonic() + 60)
    assert [verdict.verdict for verdict in answer.verdicts] == [Verdict.TIME_LIMIT], answer
    assert answer.verdicts[0].detail.endswith("(threads: 1 held by the kernel)")
