"""The supervisor of a run: it ends a run at its limit, and passes the judge's alarm on."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import termios
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from deepcoder_contracts.judge import Kind
from deepcoder_sandbox.worker import supervise
from deepcoder_sandbox.worker.packets import CANCEL, HUNG_UP, RING, Job, RunLimits, decode_ended, encode_job
from deepcoder_sandbox.worker.supervise import Supervisor


@pytest.fixture
def supervise_it():
    """Start a process that reads until its input is closed; what waits for its end as for a run's, and the judge."""
    with ExitStack() as opened:

        def start(code="import sys; sys.stdin.read()", cpu_s=60.0, wall_s=60.0, gate=None, **fields):
            ours, theirs = map(opened.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            command = [sys.executable, "-S", "-c", code]
            process = opened.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE))
            opened.callback(process.kill)  # whatever fails: the end of its input does not end each of them
            fields = {"setup_cpu_s": lambda: 0.0, "sessions": False, **fields}
            supervisor = Supervisor(theirs, None, gate, **fields)

            def wait():
                killed_for = supervisor.wait(
                    process.pid, encode_job(Job(Kind.STDIN, RunLimits(cpu_s, wall_s, 64, 1 << 20)))
                )
                return decode_ended(supervisor.reaped.packet_of_killed(killed_for)) if killed_for is not None else None

            return process, wait, ours

        yield start


@pytest.fixture
def supervised(supervise_it):
    """One that may take 0.2 s."""
    return supervise_it(wall_s=0.2)


def test_run_is_ended_at_its_limit_and_told_what_it_did(supervised):
    opened = len(list(Path("/proc/self/fd").iterdir()))  # less, if an object of another test is freed meanwhile
    ended = supervised[1]()
    assert len(list(Path("/proc/self/fd").iterdir())) <= opened, "a zygote may have few files, and serves many runs"
    assert (ended.wait_status, ended.killed_for, ended.states) == (signal.SIGKILL, "wall", "S")
    assert ended.wall_s - ended.starved_s > 0.2


def test_run_that_ends_between_the_look_and_its_end_has_kept_its_limit(supervised, monkeypatch):
    process, wait, _ = supervised

    def kill(pid, number):
        process.stdin.close()
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is there to be told of
        os.kill(pid, number)

    monkeypatch.setattr(supervise, "kill", kill)
    ended = wait()
    assert (ended.wait_status, ended.killed_for) == (0, None)


def test_alarm_has_been_rung_when_the_judge_sees_its_word_taken(supervised, monkeypatch):
    _, wait, judge = supervised
    seen = []

    def kill(pid, number):
        seen.append((number, fcntl.ioctl(judge, termios.TIOCOUTQ, bytes(4)) != bytes(4)))
        os.kill(pid, number)  # of which it dies, as it has no handler

    monkeypatch.setattr(supervise, "kill", kill)
    judge.send(RING)
    assert (wait().wait_status, seen) == (signal.SIGALRM, [(signal.SIGALRM, True)])
    assert fcntl.ioctl(judge, termios.TIOCOUTQ, bytes(4)) == bytes(4)


def test_run_is_ended_by_the_cpu_time_that_it_used_beyond_what_confining_took(supervise_it):
    ended = supervise_it("while True: pass", cpu_s=0.05, setup_cpu_s=lambda: 0.05)[1]()
    assert (ended.wait_status, ended.killed_for) == (signal.SIGKILL, "cpu")
    assert ended.cpu_s >= 0.0999


@pytest.mark.parametrize("hangs_up", [False, True])
def test_run_is_ended_when_the_judge_says_so_or_is_gone_and_not_when_it_tells_that_the_end_is_near(
    supervise_it, monkeypatch, hangs_up
):
    monkeypatch.setattr(supervise.Starvation, "seconds", lambda _: 5.0)
    _, wait, judge = supervise_it()
    judge.send(HUNG_UP)
    if hangs_up:
        judge.close()
    else:
        judge.send(CANCEL)
    ended = wait()
    assert (ended.wait_status, ended.killed_for, ended.starved_s) == (signal.SIGKILL, "cancelled", 5.0)


def test_session_that_the_judge_ends_is_reaped_and_nothing_is_told_of_it(supervise_it):
    process, wait, judge = supervise_it(sessions=True)
    judge.send(CANCEL)
    assert wait() is None
    with pytest.raises(ChildProcessError):
        os.waitpid(process.pid, 0)
    assert supervise.cpu_seconds(process.pid) is None


@pytest.mark.parametrize("told", [HUNG_UP, RING])
def test_session_that_ends_after_the_judge_told_of_that_or_rang_has_ended_by_itself(supervise_it, told):
    process, wait, judge = supervise_it(sessions=True)
    judge.send(told)
    if told is HUNG_UP:
        process.stdin.close()
    assert (ended := wait()).killed_for is None
    assert ended.signal == (signal.SIGALRM if told is RING else None)


@pytest.mark.parametrize("sessions", [False, True])
def test_thread_that_is_asked_for_is_answered_while_the_run_goes_on(supervise_it, sessions):
    asked, asks = os.pipe()

    def answer(pid):
        answered.append(pid)
        os.read(asked, 1)
        process.stdin.close()

    answered = []
    gate = SimpleNamespace(fileno=lambda: asked, answer=answer)
    process, wait, _ = supervise_it(gate=gate, sessions=sessions)
    os.write(asks, b"?")
    assert (wait().killed_for, answered) == (None, [process.pid])
    os.close(asked)
    os.close(asks)
