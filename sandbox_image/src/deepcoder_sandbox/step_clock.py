"""Measures the time of one step of a session on the judge's side, where no program can forge it.

The kernel names the runner's pid with the packet that the runner sends before it loads the program (`Started` of
`deepcoder_sandbox.zygote_process`). CPU time is read from the process's own clock. Wall-clock time excludes the time in
which others kept the process from running, which is examined only if a step takes long. Once a process is gone, the
time that was read last stands.
"""

from __future__ import annotations

import socket
from time import clock_gettime, monotonic

from deepcoder_sandbox.worker.libc import process_cpu_clock
from deepcoder_sandbox.worker.starvation import Starvation
from deepcoder_sandbox.worker.supervise import cpu_seconds

_MARK_EVERY_S = 0.1


def receive(control: socket.socket, size: int) -> bytes:
    """Return a packet; an empty one at the end of the connection.

    A process that ends without reading our last packet resets the connection, once. What it sent before is still there.
    """
    try:
        return control.recv(size)
    except ConnectionResetError:
        return control.recv(size)


class StepClock:
    """Measures the steps of one process."""

    def __init__(self, pid: int, limit_s: float, cpu_s: float, since: float) -> None:
        """Begin the first step at `since` (monotonic), when the process had used `cpu_s`.

        `limit_s` is the shortest limit of its steps.
        """
        self._pid = pid
        self._limit_s = limit_s
        self._cpu_clock = process_cpu_clock(pid)
        self._first = self._started = self._marked = since
        self._started_cpu_s = self._cpu_s = cpu_s
        self._starvation_seen: Starvation | None = None
        self._sampling = False

    def start(self) -> None:
        """Begin a step, at the CPU time that was read last.

        How long others kept the process from running is read again only if it may be more than `_MARK_EVERY_S`. So up
        to that much of an earlier step's wait may count for this step.
        """
        self._started_cpu_s = self._cpu_s
        self._started = monotonic()
        self._sampling = False
        if self._started - self._marked > _MARK_EVERY_S:
            self._starvation().mark()
            self._marked = self._started

    def _starvation(self) -> Starvation:
        if self._starvation_seen is None:
            pid = self._pid
            self._starvation_seen = Starvation(pid, lambda: cpu_seconds(pid), self._limit_s, self._first)
        return self._starvation_seen

    def cpu_s(self) -> float:
        """Return the CPU seconds of the step so far, of all threads."""
        try:
            now_s = clock_gettime(self._cpu_clock)
        except OSError:  # the process is gone
            now_s = self._cpu_s
        self._cpu_s = now_s
        return now_s - self._started_cpu_s

    def look(self) -> tuple[float, str]:
        """Return the step's seconds so far, without those in which others kept it from running, and its states.

        The states of its threads (`Starvation.states`) are of a moment up to which all excluded time is known.
        """
        elapsed = monotonic() - self._started
        states = self._starvation().states()
        return elapsed - self._starvation().seconds(), states

    def sample_in_s(self) -> float:
        """Take the sample that `look` relies on, if one is due, and return the seconds until the next one.

        The first call of a step takes none, because the program can foresee that moment.
        """
        starvation = self._starvation()
        if self._sampling:
            starvation.sample()
        else:
            starvation.draw()
            self._sampling = True
        return max(0.0, starvation.sample_at - monotonic())
