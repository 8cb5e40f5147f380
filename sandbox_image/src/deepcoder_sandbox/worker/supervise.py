"""Waiting for a runner to end, and ending it: CPU time decides, wall-clock time is the backstop.

The CPU clock of the runner is read directly (its clock id is derived from its pid), so a time limit is exact and no
polling is needed: sleep for as long as the limit cannot possibly be reached, look, sleep again. The wall clock counts
only time in which the runner was not kept waiting for a processor: a busy machine gives no false verdict.

Meanwhile the judge may have the runner's alarm rung, or the run ended (which hanging up does too).

A short run is the usual one: until the first look there is little more here than one poll, because what the zygote
touches while its copy lives has to be copied.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable
from os import kill  # by name: LiveCodeBench's harness takes it out of the module

from deepcoder_sandbox.worker import packets
from deepcoder_sandbox.worker.libc import process_cpu_clock
from deepcoder_sandbox.worker.starvation import Starvation
from deepcoder_sandbox.worker.thread_gate import ThreadGate

_OVERDUE_SLEEP_S, _LONGEST_SLEEP_S = 0.01, 1.0
_PACKET_BYTES = 1 << 16


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU time of a process that has not been reaped, None if it is gone."""
    try:
        return time.clock_gettime(process_cpu_clock(pid))
    except OSError:
        return None


def supervise(
    pid: int,
    proc: int,
    channel: socket.socket,
    gate: ThreadGate | None,
    limits: packets.RunLimits,
    setup_cpu_s: Callable[[], float],
) -> tuple[int, float, float, float, int, str | None]:
    """Wait for `pid`, ending it at its limits or when the judge says so on `channel`, or hangs up; reap it.

    `setup_cpu_s` tells what confining has cost: that belongs to the judge, not to the program. Returns the fields of
    `packets.RunEnded` up to `killed_for`, the CPU time that confining took still in it.
    """
    cpu_limit_s, wall_limit_s = limits.cpu_limit_s, limits.wall_limit_s
    started = time.monotonic()
    starved_s = 0.0
    killed_for: str | None = None
    starvation: Starvation | None = None
    descriptor = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        poller.register(channel, select.POLLIN)
        if gate is not None:
            poller.register(gate.fileno(), select.POLLIN)
        left_s = min(cpu_limit_s, wall_limit_s)
        look_at = started + min(left_s, _LONGEST_SLEEP_S)
        while True:
            ready = [fd for fd, _ in poller.poll(max(0.0, look_at - time.monotonic()) * 1000 + 1.0)]
            if descriptor in ready:
                break
            if gate is not None and gate.fileno() in ready:
                gate.answer(pid)
                if time.monotonic() < look_at:  # a look reads much of a program with many threads
                    continue
            if channel.fileno() in ready:
                if channel.recv(_PACKET_BYTES) == packets.RING:
                    kill(pid, signal.SIGALRM)
                else:
                    killed_for = "cancelled"
            used_s = (cpu_seconds(pid) or 0.0) - setup_cpu_s()
            starvation = starvation or Starvation(pid, proc)
            starved_s = starvation.seconds(used_s)
            waited_s = time.monotonic() - started - starved_s
            left_s = min(cpu_limit_s - used_s, wall_limit_s - waited_s)
            look_at = time.monotonic() + min(left_s if left_s > 0 else _OVERDUE_SLEEP_S, _LONGEST_SLEEP_S)
            if used_s > cpu_limit_s:
                killed_for = killed_for or "cpu"
            elif waited_s > wall_limit_s and not starvation.is_runnable():
                killed_for = killed_for or "wall"
            if killed_for is not None:
                kill(pid, signal.SIGKILL)
                break
    finally:
        os.close(descriptor)
    wall_s = time.monotonic() - started
    if wall_s > _LONGEST_SLEEP_S:
        starved_s = (starvation or Starvation(pid, proc)).seconds(cpu_seconds(pid) or 0.0)
    _, status, usage = os.wait4(pid, 0)
    return status, usage.ru_utime + usage.ru_stime, wall_s, starved_s, usage.ru_maxrss, killed_for
