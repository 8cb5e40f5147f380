"""Waiting for a runner to end, and ending it: CPU time decides, wall-clock time is the backstop.

The CPU clock of the runner is read directly (its clock id is derived from its pid), so a time limit is exact and no
polling is needed: sleep for as long as the limit cannot possibly be reached, look, sleep again. The wall clock counts
only time in which the runner was not kept waiting for a processor, as the scheduler's statistics tell: a busy machine
gives no false verdict.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from deepcoder_sandbox.worker.libc import process_cpu_clock

_LONGEST_SLEEP_S = 60.0


@dataclass(frozen=True)
class Ended:
    """How a runner ended."""

    wait_status: int
    """As wait(2) tells it."""

    cpu_s: float
    """User and system time of the whole process, setting up included."""

    wall_s: float
    """From fork to end."""

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


def starved_seconds(proc: int, pid: int) -> float:
    """Return how long the process has waited for a processor, 0 where the kernel does not say."""
    try:
        descriptor = os.open(f"{pid}/schedstat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    except OSError:
        return 0.0
    try:
        return int(os.read(descriptor, 128).split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
    finally:
        os.close(descriptor)


def supervise(
    pid: int, proc: int, channel: int, cpu_limit_s: float, wall_limit_s: float, setup_cpu_s: Callable[[], float]
) -> Ended:
    """Wait for `pid`, ending it at its limits or when the judge hangs up on `channel`; reap it.

    `setup_cpu_s` tells what confining has cost: that belongs to the judge, not to the program.
    """
    started = time.monotonic()
    killed_for: str | None = None
    descriptor = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        poller.register(channel, select.POLLIN)
        while True:
            used = (cpu_seconds(pid) or 0.0) - setup_cpu_s()
            left = min(cpu_limit_s - used, wall_limit_s - (time.monotonic() - started))
            ready = poller.poll(max(1.0, min(left, _LONGEST_SLEEP_S) * 1000 + 1.0))
            if any(fd == descriptor for fd, _ in ready):
                break
            if ready:
                killed_for = "cancelled"
            elif (cpu_seconds(pid) or 0.0) - setup_cpu_s() > cpu_limit_s:
                killed_for = "cpu"
            elif time.monotonic() - started - starved_seconds(proc, pid) > wall_limit_s:
                killed_for = "wall"
            else:
                if time.monotonic() - started > wall_limit_s:
                    time.sleep(0.02)  # starved of CPU: look again shortly
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            break
    finally:
        os.close(descriptor)
    _, status, usage = os.wait4(pid, 0)
    return Ended(
        wait_status=status,
        cpu_s=usage.ru_utime + usage.ru_stime,
        wall_s=time.monotonic() - started,
        max_rss_kb=usage.ru_maxrss,
        killed_for=killed_for,
    )
