"""Waits for a runner to end, or ends it: CPU time decides, and wall-clock time is the backstop.

The runner's CPU clock is read directly (its clock id is derived from its pid). So a time limit is exact and needs no
polling: sleep for as long as the limit cannot be reached, look, sleep again. The wall-clock limit counts only time in
which other processes did not keep the runner from running, so a busy machine gives no false verdict. If a runner that
is ended at that limit turns out to have ended by itself, it has kept the limit.

Meanwhile the judge may have the alarm sent to the runner, or end the run (closing the connection also ends it).

Most runs are short. Until the first look there is little more here than one poll, because memory that the zygote
touches while its copy lives must be copied. For the end of a session there is no look at all: the judge hears of it
first and says so.
"""

from __future__ import annotations

import ctypes
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from os import close, kill, pidfd_open, waitpid  # by name: LiveCodeBench's harness takes the second out of the module
from time import monotonic

from deepcoder_sandbox.worker.libc import bare_poll, process_cpu_clock
from deepcoder_sandbox.worker.packets import (
    FOR_WALL,
    GO_ON,
    RING,
    STARVED_AT,
    TOLD_BYTES,
    WALL_AT,
    PlainJob,
    decode_job,
)
from deepcoder_sandbox.worker.reap import Reaped
from deepcoder_sandbox.worker.starvation import Starvation, may_go_on
from deepcoder_sandbox.worker.thread_gate import ThreadGate

_SIGKILL, _SIGALRM = int(signal.SIGKILL), int(signal.SIGALRM)
_PEEK = int(socket.MSG_PEEK)
_POLLED, _NO_DESCRIPTOR = struct.Struct("ihh"), -1
_OVERDUE_SLEEP_S, _LONGEST_SLEEP_S = 0.01, 1.0
_LONGEST_SLEEP_MS = _LONGEST_SLEEP_S * 1000


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU time of a process that has not been reaped, None if it is gone."""
    try:
        return time.clock_gettime(process_cpu_clock(pid))
    except OSError:
        return None


class Supervisor:
    """Waits for one runner after another."""

    def __init__(
        self,
        channel: socket.socket,
        proc: int,
        gate: ThreadGate | None,
        setup_cpu_s: Callable[[], float],
        *,
        sessions: bool,
    ) -> None:
        """`channel` is the judge's, `proc` a descriptor of /proc; `gate` counts threads, if it is not None.

        `setup_cpu_s` returns what confining has cost, which is the judge's and not the program's. For `sessions` the
        judge says when they are over.
        """
        self._channel = channel
        self._channel_number = channel.fileno()
        self._setup_cpu_s = setup_cpu_s
        self._sessions = sessions
        self._proc = proc
        self._gate = gate
        self._poller = select.poll()
        self._poller.register(channel, select.POLLIN)
        if gate is not None:
            self._poller.register(gate.fileno(), select.POLLIN)
        self.reaped = Reaped()
        """How the last run ended."""
        polled = [_NO_DESCRIPTOR, channel.fileno(), gate.fileno() if gate is not None else _NO_DESCRIPTOR]
        packed = b"".join(_POLLED.pack(descriptor, select.POLLIN, 0) for descriptor in polled)
        self._polled = ctypes.create_string_buffer(packed, len(packed))
        """What ends the first wait for a run, as poll(2) takes it: the runner, the judge, the gate."""
        self._polled_at, self._polled_count = ctypes.addressof(self._polled), len(polled)
        runner = memoryview(self._polled).cast("B")[: _POLLED.size]
        self._runner_descriptor, self._runner_events = runner[:4].cast("i"), runner[6:].cast("h")

    def wait(self, pid: int, packet: bytes, job: PlainJob | None = None) -> str | None:
        """Wait for `pid`, end it at its limits or when the judge says so or hangs up, and reap it into `reaped`.

        `packet` requested the run; `job` is the decoded packet, None if it is not decoded yet. Returns why the run was
        ended, empty if it ended by itself; the states of its threads follow `packets.FOR_WALL`. None: it was a session
        that the judge has ended, and `reaped` says nothing of it.
        """
        started = monotonic()
        if self._sessions:
            ready = self._poller.poll(_LONGEST_SLEEP_MS)  # no session has a limit that is shorter
            is_told = len(ready) == 1 and ready[0][0] == self._channel_number
            if is_told and self._told(pid) not in GO_ON:
                kill(pid, _SIGKILL)
                waitpid(pid, 0)
                return None
        return self._wait_for_end(pid, (job or decode_job(packet))[1], started)

    def _wait_for_end(self, pid: int, limits: tuple[float, float, int, int], started: float) -> str:
        cpu_limit_s, wall_limit_s, _, _ = limits
        killed_for, starved_s = "", 0.0
        descriptor = pidfd_open(pid)
        try:
            first_look_s = min(cpu_limit_s, wall_limit_s, _LONGEST_SLEEP_S)
            self._runner_descriptor[0] = descriptor
            ready = bare_poll(self._polled_at, self._polled_count, int(first_look_s * 1000) + 1)
            if ready != 1 or not self._runner_events[0]:
                self._poller.register(descriptor, select.POLLIN)
                try:
                    killed_for, starved_s = self._watch(pid, descriptor, started, cpu_limit_s, wall_limit_s)
                finally:
                    self._poller.unregister(descriptor)
        finally:
            close(descriptor)
        floats = self.reaped.floats
        floats[WALL_AT] = monotonic() - started
        floats[STARVED_AT] = starved_s
        status = self.reaped.reap(pid)
        if killed_for.startswith(FOR_WALL) and status != _SIGKILL:
            return ""  # it ended by itself between the look and the SIGKILL
        return killed_for

    def _told(self, pid: int) -> bytes:
        """Return the judge's packet, and ring the alarm if it says so.

        Ring first, then receive: the judge requests the next test once it sees the packet received, and on a busy
        machine an alarm after that would go off in that test.
        """
        if self._channel.recv(TOLD_BYTES, _PEEK) == RING:
            kill(pid, _SIGALRM)
        return self._channel.recv(TOLD_BYTES)

    def _watch(
        self,
        pid: int,
        descriptor: int,
        started: float,
        cpu_limit_s: float,
        wall_limit_s: float,
    ) -> tuple[str, float]:
        """Watch a runner that is not over in a moment; return why it was ended, and how long it starved."""
        starvation = Starvation(pid, lambda: cpu_seconds(pid), wall_limit_s, started, self._proc)
        killed_for = ""
        look_at = time.monotonic()
        ready = self._poller.poll(0)
        while descriptor not in (events := [fd for fd, _ in ready]):
            if self._channel_number in events and self._told(pid) not in GO_ON:
                killed_for = "cancelled"
            if self._gate is not None and self._gate.fileno() in events:
                self._gate.answer(pid)
            starvation.sample()
            now = time.monotonic()
            if now >= look_at and not killed_for:  # rarely: a look reads much if a program has many threads
                used_s = (cpu_seconds(pid) or 0.0) - self._setup_cpu_s()
                states = starvation.states()
                waited_s = now - started - starvation.seconds()
                left_s = min(cpu_limit_s - used_s, wall_limit_s - waited_s)
                look_at = now + min(left_s if left_s > 0 else _OVERDUE_SLEEP_S, _LONGEST_SLEEP_S)
                if used_s > cpu_limit_s:
                    killed_for = "cpu"
                elif waited_s > wall_limit_s and not may_go_on(states, waited_s - wall_limit_s):
                    killed_for = FOR_WALL + states
            if killed_for:
                kill(pid, _SIGKILL)
                break
            until = min(look_at, starvation.sample_at)
            ready = self._poller.poll(max(0.0, until - time.monotonic()) * 1000 + 1.0)
        return killed_for, starvation.seconds()
