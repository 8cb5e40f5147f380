"""Waiting for a runner to end, and ending it: CPU time decides, wall-clock time is the backstop.

The CPU clock of the runner is read directly (its clock id is derived from its pid), so a time limit is exact and no
polling is needed: sleep for as long as the limit cannot possibly be reached, look, sleep again. The wall clock counts
only time in which the runner was not kept waiting for a processor: a busy machine gives no false verdict.

Meanwhile the judge may have the runner's alarm rung (`ring`), or the run ended (anything else, and hanging up).
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from deepcoder_sandbox.worker.libc import process_cpu_clock
from deepcoder_sandbox.worker.starvation import Starvation

_LONGEST_SLEEP_S = 1.0
_PACKET_BYTES = 1 << 16


@dataclass(frozen=True)
class Ended:
    """How a runner ended."""

    wait_status: int
    """As wait(2) tells it."""

    cpu_s: float
    """User and system time of the whole process, setting up included."""

    wall_s: float
    """From fork to end."""

    starved_s: float
    """How much of that it waited for a processor; not told of runs shorter than a second."""

    max_rss_kb: int
    """Peak resident set, in KiB."""

    killed_for: str | None
    """cpu, wall or cancelled, where the zygote ended it."""


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU time of a process that has not been reaped, None if it is gone."""
    try:
        return time.clock_gettime(process_cpu_clock(pid))
    except OSError:
        return None


def _wants_alarm(channel: socket.socket) -> bool:
    """Read what the judge sent during a run: whether it asks for the alarm, else for the end."""
    packet = channel.recv(_PACKET_BYTES)
    return bool(packet) and json.loads(packet)["mode"] == "ring"


def supervise(
    pid: int,
    proc: int,
    channel: socket.socket,
    cpu_limit_s: float,
    wall_limit_s: float,
    setup_cpu_s: Callable[[], float],
) -> Ended:
    """Wait for `pid`, ending it at its limits or when the judge says so on `channel`, or hangs up; reap it.

    `setup_cpu_s` tells what confining has cost: that belongs to the judge, not to the program.
    """
    started = time.monotonic()
    starvation = Starvation(pid, proc)
    starved_s = 0.0
    killed_for: str | None = None
    descriptor = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        poller.register(channel, select.POLLIN)
        while True:
            used = (cpu_seconds(pid) or 0.0) - setup_cpu_s()
            left = min(cpu_limit_s - used, wall_limit_s + starved_s - (time.monotonic() - started))
            ready = poller.poll(max(1.0, min(left, _LONGEST_SLEEP_S) * 1000 + 1.0))
            if any(fd == descriptor for fd, _ in ready):
                break
            if ready:
                if _wants_alarm(channel):
                    os.kill(pid, signal.SIGALRM)
                    continue
                killed_for = "cancelled"
            else:
                used = (cpu_seconds(pid) or 0.0) - setup_cpu_s()
                starved_s = starvation.seconds(used)
                if used > cpu_limit_s:
                    killed_for = "cpu"
                elif time.monotonic() - started - starved_s > wall_limit_s:
                    killed_for = "wall"
                else:
                    continue
            os.kill(pid, signal.SIGKILL)
            break
    finally:
        os.close(descriptor)
    wall_s = time.monotonic() - started
    if wall_s > _LONGEST_SLEEP_S:
        starved_s = starvation.seconds(cpu_seconds(pid) or 0.0)
    _, status, usage = os.wait4(pid, 0)
    return Ended(
        wait_status=status,
        cpu_s=usage.ru_utime + usage.ru_stime,
        wall_s=wall_s,
        starved_s=starved_s,
        max_rss_kb=usage.ru_maxrss,
        killed_for=killed_for,
    )
