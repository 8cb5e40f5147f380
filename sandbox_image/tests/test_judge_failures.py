"""The judge's own failures: `error` with passed null, or a retry that nobody notices, and never a verdict."""

import contextlib
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from scripted_slots import wait_until

from deepcoder_contracts.judge import Kind, Tier, Verdict
from deepcoder_sandbox.attack_limits import bounds
from deepcoder_sandbox.execution import Program, execute
from deepcoder_sandbox.memory_file import MemoryFile
from deepcoder_sandbox.outcome import KilledFromOutside, read_claim
from deepcoder_sandbox.pool import Draining, Overdue, Pool, QueueFull
from deepcoder_sandbox.slot import Slot
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.worker.packets import IN_FILE, INLINE, SESSION_BYTES, Job, RunEnded, RunLimits
from deepcoder_sandbox.zygote_process import ZygoteConfig, ZygoteFailed, ZygoteProcess

SLOW = "import time\ntime.sleep(0.5)\nprint(input())"


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runners(zygote):
    return children(zygote.pid if zygote.config.tier is not Tier.NAMESPACES else children(zygote.pid)[0])


def runner_of(zygote):
    """The runner under way, waited for."""
    until = time.monotonic() + 30
    while not (found := runners(zygote)):
        assert time.monotonic() < until
        time.sleep(0.002)
    return found[0]


@pytest.fixture
def once_begun(monkeypatch):
    """Do something to the first run that begins, before the judge goes on."""
    start, left = ZygoteProcess.start_run, []

    def start_run(zygote, *job):
        start(zygote, *job)
        while left:
            left.pop()(zygote)

    monkeypatch.setattr(ZygoteProcess, "start_run", start_run)
    return left.append


def state_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def sleeps_confined(pid):
    """Whether a runner is past its confinement, the last thing before it tells that it has started, and waits."""
    return "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text() and state_of(pid) == "S"


def in_background(action):
    thread = threading.Thread(target=action)
    thread.start()
    return thread


@pytest.mark.parametrize("scoring", ["strict", "livecodebench"])
def test_killed_zygote_is_replaced_and_the_submission_answered_once(slot, judge, scoring, once_begun):
    first = slot.ensure_zygote(harness=scoring == "livecodebench").pid

    def kill(zygote):
        until = time.monotonic() + 5  # it may have ended already, where nobody looked for long
        while not runners(zygote) and time.monotonic() < until:
            time.sleep(0.002)
        os.kill(first, signal.SIGKILL)

    once_begun(kill)
    answer = judge(SLOW, ("1", "1"), ("2", "2"), scoring=scoring)
    assert answer.passed is True
    assert len(answer.verdicts) == 2
    assert slot.zygote_pid != first


def test_zygote_that_dies_every_time_gives_error_and_no_verdict(slot, judge):
    slot.ensure_zygote()  # the kind that is killed, and not the one that was used before
    killing = threading.Event()

    def kill_all():
        while not killing.is_set():
            if slot.zygote_pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(slot.zygote_pid, signal.SIGKILL)
            time.sleep(0.02)

    killer = in_background(kill_all)
    try:
        answer = judge("import time\ntime.sleep(60)", ("1", "1"), ("2", "2"))
    finally:
        killing.set()
        killer.join()
    assert answer.passed is None
    assert [verdict.verdict for verdict in answer.verdicts] == [Verdict.ERROR, Verdict.ERROR]
    assert judge("print(input())", ("1", "1")).passed is True  # the slot lives on


@pytest.mark.parametrize(
    ("work", "fields"),
    [
        ("print(input())", {}),
        ("print(input())", {"scoring": "livecodebench"}),
        # as it is loaded, with its first test before it and not yet read
        ("def f(x):\n    return x", {"scoring": "livecodebench", "kind": "function", "fn_name": "f"}),
    ],
    ids=["strict", "livecodebench", "livecodebench, loading"],
)
def test_runner_killed_from_outside_is_tried_again(slot, judge, work, fields):
    zygote, killed = slot.ensure_zygote(harness="scoring" in fields), []

    def kill():
        pid = runner_of(zygote)
        time.sleep(0.2)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    for _ in range(5):  # on a busy machine the program may have ended before
        until = time.time() + 1.5  # in its second try, little is left of that
        killer = in_background(kill)
        answer = judge(f"import time\ntime.sleep(max(0, {until} - time.time()))\n{work}", ("1", "1"), **fields)
        killer.join()
        assert answer.passed is True
        if killed:
            return
    pytest.fail("no runner was killed")


def test_session_that_dies_hangs_up_whatever_its_zygote_is_at(any_slot):
    zygote, source = any_slot.ensure_zygote(harness=True), b"import time\ntime.sleep(60)"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with (
        ours,
        theirs,
        MemoryFile("given", source) as given,
        MemoryFile("output") as output,
        Path(os.devnull).open("rb+") as null,
    ):
        ours.send(IN_FILE)
        ours.send(INLINE)
        files = [*[null.fileno()] * 3, theirs.fileno(), output.fileno(), given.fileno()]
        zygote.start_run(Job(Kind.STDIN, bounds(), len(source)), files)
        theirs.close()
        runner = runner_of(zygote)
        until = time.monotonic() + 30
        while not (sleeps_confined(runner) and state_of(zygote.pid) == "S"):  # in its program; for the run's end
            assert time.monotonic() < until
            time.sleep(0.002)
        os.kill(zygote.pid, signal.SIGSTOP)
        os.kill(runner, signal.SIGKILL)
        ours.settimeout(10)
        with contextlib.suppress(ConnectionResetError):  # it has not read all that it was asked for
            while ours.recv(SESSION_BYTES):  # that it is prepared
                continue
        os.kill(zygote.pid, signal.SIGCONT)
        zygote.tell_hung_up()
        assert zygote.finish_run(time.monotonic() + 20).signal == signal.SIGKILL


def test_runner_that_cannot_be_confined_is_the_judges_failure(any_slot):
    zygote = ZygoteProcess(any_slot.ensure_zygote().config)
    job = Job("stdin", RunLimits(1.0, 3.0, memory_limit_mb=1 << 60, file_bytes=1 << 20))
    try:
        zygote.start_run(job, [0, 1, 2])
        with pytest.raises(ZygoteFailed, match="before its program started"):
            zygote.finish_run(time.monotonic() + 30)
    finally:
        zygote.kill()


def test_deadline_that_passes_gives_error(judge_once, any_slot, make):
    request = make(SLOW, ("1", "1"), ("2", "2"))
    answer = any_slot.judge(Submission(request, tuple(request.tests)), time.monotonic() + 0.6)
    assert answer.passed is None
    assert {verdict.verdict for verdict in answer.verdicts} == {Verdict.ERROR}


def test_deadline_that_passes_in_a_session_is_not_its_zygotes_fault(any_slot, make):
    zygote = any_slot.ensure_zygote(harness=True)
    request = make("while True: pass", ("", ""), scoring="livecodebench", time_limit_s=60)
    answer = any_slot.judge(Submission(request, tuple(request.tests)), time.monotonic() + 0.3)
    assert answer.passed is None
    assert "the deadline passed" in answer.verdicts[0].detail
    assert any_slot.ensure_zygote(harness=True) is zygote


def test_want_of_descriptors_in_the_judge_is_error(any_slot, make, monkeypatch):
    def refuse(*_):
        raise OSError(24, "Too many open files")

    request = make("print(1)", ("", "1"))
    monkeypatch.setattr(os, "memfd_create", refuse)
    answer = any_slot.judge(Submission(request, tuple(request.tests)), time.monotonic() + 30)
    assert answer.passed is None
    assert "Too many open files" in answer.verdicts[0].detail
    monkeypatch.undo()
    assert any_slot.judge(Submission(request, tuple(request.tests)), time.monotonic() + 30).passed is True


def test_sigkill_that_nobody_sent_is_not_the_programs_fault():
    from deepcoder_sandbox import outcome

    ended = RunEnded(wait_status=9, cpu_s=0.1, wall_s=0.1, starved_s=0.0, max_rss_kb=1, killed_for=None, clean=True)
    limits = RunLimits(cpu_limit_s=1, wall_limit_s=3, memory_limit_mb=64, file_bytes=1 << 20)
    with pytest.raises(KilledFromOutside):
        outcome.failed_run(ended, limits, outcome.Claim(), 0, b"")


@pytest.mark.parametrize("report", [b"", b"{", b"[1]", b"7", b'{"failure": 3}', b"[" * 100_000, b"\xff\xfe"])
def test_broken_claim_says_nothing(report):
    claim = read_claim(report)
    assert (claim.failure, claim.completed) == (None, None)


def test_full_queue_refuses_with_a_hint_and_a_draining_pool_refuses_all(make):
    pool = Pool(ZygoteConfig(), slots=1, worker="test", max_queued=2)
    try:
        request = make(SLOW, ("1", "1"))
        submission = Submission(request, tuple(request.tests))
        answers = [pool.submit(submission), pool.submit(submission)]
        with pytest.raises(QueueFull) as full:
            answers.extend(pool.submit(submission) for _ in range(10))
        assert 1 <= full.value.retry_after_s <= 30
        pool.drain()
        with pytest.raises(Draining):
            pool.submit(submission)
        assert [answer.result(60).passed for answer in answers] == [True] * len(answers)
    finally:
        assert pool.close(30) is True


def test_deadline_that_passes_in_the_queue_gives_no_verdict(make):
    pool = Pool(ZygoteConfig(), slots=1, worker="test", max_queued=5)
    try:
        long = make(SLOW, ("1", "1"))
        short = make(SLOW, ("1", "1"), deadline_s=0.01)
        first = pool.submit(Submission(long, tuple(long.tests)))
        second = pool.submit(Submission(short, tuple(short.tests)))
        assert first.result(60).passed is True
        with pytest.raises(Overdue):
            second.result(60)
    finally:
        pool.close(30)


def test_long_queue_is_no_failure_where_the_client_set_no_deadline(make, monkeypatch):
    monkeypatch.setattr("deepcoder_sandbox.limits.judging_deadline_s", lambda time_limit_s, tests: 3.0)
    pool = Pool(ZygoteConfig(), slots=1, worker="test", max_queued=12)
    try:
        request = make(SLOW, ("1", "1"), time_limit_s=1.0)  # and twice the deadline in the queue
        answers = [pool.submit(Submission(request, tuple(request.tests))) for _ in range(12)]
        assert [answer.result(60).passed for answer in answers] == [True] * 12
    finally:
        pool.close(30)


SLEEPS_IN_TWO_THREADS = b"""
import threading, time
threading.Thread(target=time.sleep, args=(90,)).start()
time.sleep(90)
"""


def has_ended(pid):
    try:
        return state_of(pid) == "Z"  # of which nobody may have heard in a container
    except OSError:
        return True


def test_runner_ends_with_its_zygote(slot):
    zygote, source = ZygoteProcess(slot.ensure_zygote().config), SLEEPS_IN_TWO_THREADS

    def run():
        with MemoryFile("code", source, sealable=True) as code, pytest.raises(ZygoteFailed, match="gone"):
            execute(zygote, Program(code, len(source), Kind.STDIN), b"", bounds(wall=90.0), time.monotonic() + 90, 100)

    running = in_background(run)
    runner = runner_of(zygote)
    wait_until(lambda: len(list(Path(f"/proc/{runner}/task").iterdir())) == 2)
    os.kill(zygote.pid, signal.SIGKILL)
    wait_until(lambda: has_ended(runner))  # it would run on, and nobody would hold it to its limits
    running.join()
    zygote.kill()


def test_what_interrupts_a_judge_at_its_terminal_interrupts_no_program(any_slot):
    assert os.getpgid(any_slot.ensure_zygote().pid) != os.getpgid(0)


def test_if_memory_runs_out_the_kernel_ends_a_zygote_before_the_judge(slot):
    for zygote in (slot.ensure_zygote(), slot.ensure_zygote(harness=True)):
        serving = zygote.pid if zygote.config.tier is not Tier.NAMESPACES else children(zygote.pid)[0]
        assert Path(f"/proc/{serving}/oom_score_adj").read_text() == "1000\n"


def test_zygote_ends_when_its_judge_does(any_slot):
    slot = Slot(ZygoteConfig(), "test")
    pid = slot.ensure_zygote().pid
    slot.close()
    assert not Path(f"/proc/{pid}").exists()
