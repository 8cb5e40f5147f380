"""What follows from a request's limits: how long its tests may take together, and when judging is given up."""

import os
import time
from resource import RLIMIT_AS, RLIMIT_CPU, RLIMIT_FSIZE

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deepcoder_contracts import judge_time
from deepcoder_contracts.judge import MAX_TESTS, JudgeRequest, Verdict
from deepcoder_sandbox import execution, limits, process_per_test
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.worker import confine, starvation
from deepcoder_sandbox.worker.packets import INLINE_BYTES, RunEnded, RunLimits


def largest(field):
    """The most that the contract accepts of a request's number."""
    (most,) = [bound.le for bound in JudgeRequest.model_fields[field].metadata if hasattr(bound, "le")]
    return most


def every_size(test):
    """For requests of every size that is accepted, the largest included."""
    times = st.floats(0.001, largest("time_limit_s"))
    drawn = given(time_limit_s=times, tests=st.integers(1, MAX_TESTS))(test)
    for time_limit_s, tests in [(600.0, 1), (600.0, 10), (6.0, 520), (600.0, MAX_TESTS), (0.001, MAX_TESTS)]:
        drawn = example(time_limit_s=time_limit_s, tests=tests)(drawn)
    return drawn


@every_size
def test_program_that_makes_half_of_its_time_look_like_waiting_comes_to_its_limit_before_the_deadline(
    time_limit_s, tests
):
    deadline_s = limits.judging_deadline_s(time_limit_s, tests)
    assert deadline_s > 2 * limits.submission_limit_s(time_limit_s, tests)
    assert deadline_s > 2 * limits.of_all_tests(time_limit_s, tests, 64, 1).wall_limit_s
    assert deadline_s <= judge_time.LONGEST_DEADLINE_S == largest("deadline_s")


@every_size
def test_program_that_computes_within_its_limits_meets_the_limit_on_all_tests_only_at_the_longest(time_limit_s, tests):
    needed_s = min(time_limit_s * tests, judge_time.LONGEST_SUBMISSION_S)
    assert limits.submission_limit_s(time_limit_s, tests) >= needed_s
    assert limits.of_all_tests(time_limit_s, tests, 64, 1).cpu_limit_s >= needed_s


def test_program_that_sleeps_through_its_tests_meets_a_limit_before_the_deadline(judge_once, monkeypatch):
    monkeypatch.setattr(judge_time, "_STARTING_S", 0.0)  # which it would sleep through, too
    code = "import time\ntime.sleep(3.8)\nprint(1)"  # of 4.2 s a test, and 7.2 s all three
    answer = judge_once(code, *[("", "1")] * 3, time_limit_s=1.4, stop_on_first_failure=False)
    assert [verdict.verdict.value for verdict in answer.verdicts] == ["passed", "time_limit", "time_limit"]


def test_time_in_which_others_kept_a_test_from_running_is_not_taken_from_later_tests(make, monkeypatch):
    allowed_s = []

    def execute(zygote, program, given, bounds, deadline, answer_bytes):
        allowed_s.append(bounds.wall_limit_s)
        ended = RunEnded(0, 0.1, wall_s=1000.0, starved_s=999.9, max_rss_kb=1, killed_for=None, clean=True)
        return execution.Execution(ended, b"1", answer=b"", written_bytes=1, stderr=b"")

    monkeypatch.setattr(process_per_test, "execute", execute)
    request = make("print(1)", *[("", "1")] * 3, time_limit_s=1.0)
    submission = Submission(request, tuple(request.tests))
    verdicts = process_per_test.judge_each_test(lambda: None, submission, float("inf"))
    assert [verdict.verdict for verdict in verdicts] == [Verdict.PASSED] * 3
    assert allowed_s == [3.0] * 3


def test_program_that_computed_to_the_limit_of_all_tests_is_told_so(make, monkeypatch):
    def execute(*_):
        ended = RunEnded(0, 5.0, wall_s=900.0, starved_s=0.0, max_rss_kb=1, killed_for=None, clean=True)
        return execution.Execution(ended, b"1", answer=b"", written_bytes=1, stderr=b"")

    monkeypatch.setattr(process_per_test, "execute", execute)
    request = make("print(1)", *[("", "1")] * 3, time_limit_s=600.0)
    submission = Submission(request, tuple(request.tests))
    last = process_per_test.judge_each_test(lambda: None, submission, float("inf"))[-1]
    assert last.verdict is Verdict.TIME_LIMIT
    assert last.detail == "earlier tests used up the 1600 s of all tests, 10.0 s of that as CPU time"


def test_program_that_the_kernel_holds_past_its_limit_is_ended_before_any_deadline():
    held_s = 2 * starvation._MOST_HELD_S  # of which half at least counts
    assert held_s < judge_time._JUDGING_MARGIN_S
    bounds = limits.of_one_test(0.1, 64, 1)
    until_s = execution.wait_deadline(bounds, deadline=float("inf")) - time.monotonic()
    assert until_s > 2 * bounds.wall_limit_s + held_s


@pytest.mark.parametrize("scoring", ["strict", "livecodebench"])
def test_only_output_files_can_grow(judge, scoring):
    outputs = "(1, 2)" if scoring == "strict" else "(4,)"
    code = f"""
import os
grown = []
for fd in range(8):
    if fd in {outputs}: continue
    try:
        if os.fstat(fd).st_mode & 0o170000 != 0o100000: continue
        size = os.fstat(fd).st_size
        for attempt in (lambda: os.pwrite(fd, b"x" * 8192, size), lambda: os.ftruncate(fd, size + 4096),
                        lambda: os.posix_fallocate(fd, size, 4096)):
            try: attempt(); grown.append(fd)
            except OSError: pass
    except OSError: pass
print(grown or "nothing")
"""
    for length in (0, INLINE_BYTES):  # a session's short program is in no file
        program = code + "#" * length
        assert judge(program, ("some input", "nothing"), scoring=scoring).passed is True


def test_input_of_every_length_reaches_a_session_whole(judge_once):
    inputs = ["", "x" * 70_000, "é", "y" * 5000, "\U0001f600" * 3]
    code = "import sys\nt = sys.stdin.read()\nprint(len(t), t[-3:])"
    tests = [(text, f"{len(text)} {text[-3:]}") for text in inputs]
    assert judge_once(code, *tests, scoring="livecodebench").passed is True


def test_code_too_large_to_be_kept_is_compiled_for_each_test(judge_once):
    code = "".join(f"x{n} = '{n}' * 4000\n" for n in range(3000)) + "print(input())"
    assert judge_once(code, ("1", "1"), ("2", "2"), ("3", "3")).passed is True


MANY_THREADS = """
import threading
from concurrent.futures import ThreadPoolExecutor
together = threading.Barrier(64)
def work(number):
    together.wait()
    return len(str(number) * 1000)
with ThreadPoolExecutor(64) as pool: print(len(list(pool.map(work, range(64)))))
"""


@pytest.mark.parametrize("scoring", ["strict", "livecodebench"])
def test_program_of_many_threads_has_room_for_them(judge, scoring):
    assert judge(MANY_THREADS, ("", "64"), scoring=scoring, time_limit_s=3).passed is True


def test_signals_that_wait_for_a_program_are_few(judge):
    code = """
import os, signal
waiting = 0
for number in (signal.SIGRTMIN, signal.SIGRTMIN + 1, signal.SIGRTMAX):
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    for _ in range(1000): os.kill(os.getpid(), number)
for number in (signal.SIGRTMIN, signal.SIGRTMIN + 1, signal.SIGRTMAX):
    while signal.sigtimedwait([number], 0): waiting += 1
print(waiting <= 64 + 3)  # one of each is remembered without room
"""
    assert judge(code, ("", "True")).passed is True


def test_kernel_has_limits_of_its_own_behind_the_judges(judge):
    code = """
import resource as r
print(*r.getrlimit(r.RLIMIT_CPU))  # in seconds; it ends what the zygote should have ended before
print(*(r.getrlimit(which)[1] for which in (r.RLIMIT_NOFILE, r.RLIMIT_CORE, r.RLIMIT_MEMLOCK, r.RLIMIT_MSGQUEUE)))
"""
    assert judge(code, ("", "5 6 64 0 0 0"), time_limit_s=2).passed is True


@pytest.fixture
def confined(monkeypatch):
    """What limits a runner is given by a judge whose own are these, where a program may have 64 MiB and more files."""

    def apply(**ceilings):
        given = {}
        monkeypatch.setattr(confine, "_ceiling", lambda which: ceilings.get(names[which], confine._NO_CEILING))
        monkeypatch.setattr(confine, "setrlimit", lambda which, both: given.update({names[which]: both}))
        monkeypatch.setattr(confine, "enable", lambda: None)
        confinement = confine.Confinement(None, None, None, base_address_space=1000)
        assert "memory" not in ceilings or confinement.most_memory_mb() == (ceilings["memory"] - 1000) >> 20
        confinement._steps, confinement._descriptors_end = (), 1  # the test's own process stays as it is
        confinement.apply(RunLimits(2.9, 9.0, 64, 4096), os.getppid(), 1 << 20, confine.NO_DESCRIPTOR)
        return given

    names = {RLIMIT_CPU: "cpu", RLIMIT_AS: "memory", RLIMIT_FSIZE: "files"}
    return apply


MEMORY = (64 << 20) + 1000


@pytest.mark.parametrize(("most_cpu_s", "cpu"), [(confine._NO_CEILING, (5, 6)), (5, (5, 5))])
def test_runner_has_its_limits_as_far_as_they_are_the_judges_to_give(confined, most_cpu_s, cpu):
    files = (4096, 4096)
    assert confined(cpu=most_cpu_s) == {"cpu": cpu, "memory": (MEMORY, MEMORY), "files": files}
    assert confined(memory=MEMORY, files=4096)["files"] == files


@pytest.mark.parametrize("less", [{"memory": MEMORY - 1}, {"files": 4095}, {"cpu": 4}])
def test_program_is_not_run_with_less_than_it_may_have_which_would_look_like_its_own_excess(confined, less):
    with pytest.raises(OSError, match="limits of the judge itself"):
        confined(**less)


def test_zygote_does_not_start_with_less_stack_than_programs_need(monkeypatch):
    monkeypatch.setattr(confine, "_ceiling", lambda which: 65536 << 10)
    monkeypatch.setattr(confine, "_lower", lambda *given: given)
    confine.limit_stack(65536 << 10)
    with pytest.raises(OSError, match=r"a stack of 131072 KiB, and the judge has 65536 \(ulimit -Hs\)"):
        confine.limit_stack(131072 << 10)


@pytest.mark.parametrize("scoring", ["strict", "livecodebench"])
def test_program_that_is_given_its_signals_goes_on_getting_them(judge, scoring):
    code = """
import os, signal
got = []
signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
signal.signal(signal.SIGALRM, lambda *_: got.append(2))
for _ in range(1000): signal.raise_signal(signal.SIGUSR1)
signal.setitimer(signal.ITIMER_REAL, 0.05)
signal.pause()
print(len(got))
"""
    assert judge(code, ("", "1001"), scoring=scoring).passed is True


@pytest.mark.parametrize("scoring", ["strict", "livecodebench"])
def test_program_that_a_thread_of_its_own_interrupts_can_catch_that(judge, scoring):
    code = """
import _thread, threading, time
try:
    threading.Thread(target=_thread.interrupt_main).start()
    while True: time.sleep(0.001)
except KeyboardInterrupt: print(17)
"""
    assert judge(code, ("", "17"), scoring=scoring).passed is True
