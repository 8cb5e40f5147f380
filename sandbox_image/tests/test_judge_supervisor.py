"""The supervisor of a run: it ends a run at its limit, and passes the judge's alarm on."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import termios

import pytest

from deepcoder_contracts.judge import Kind
from deepcoder_sandbox.worker import supervise
from deepcoder_sandbox.worker.packets import RING, Job, RunLimits, decode_ended, encode_job
from deepcoder_sandbox.worker.supervise import Supervisor


@pytest.fixture
def supervised():
    """A process that reads until its input is closed, and what waits for its end, as for a run that may take 0.2 s."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]
    with ours, theirs, subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        supervisor = Supervisor(theirs, None, None, lambda: 0.0, sessions=False)
        packet = encode_job(Job(Kind.STDIN, RunLimits(60.0, 0.2, 64, 1 << 20)))

        def wait():
            return decode_ended(supervisor.reaped.packet_of_killed(supervisor.wait(process.pid, packet)))

        yield process, wait, ours


def test_run_is_ended_at_its_limit_and_told_what_it_did(supervised):
    ended = supervised[1]()
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
