"""The time that one step of a session takes, measured on the judge's side, where no program can forge or forget it.

The kernel names the runner, by the packet in which it makes itself known before the program is loaded (`Started` of
`deepcoder_sandbox.zygote_process`). CPU time is read from the process's own clock, wall-clock time leaves out what
others kept it from going on, which is looked at where a step takes long. Where a process is gone, the time that was
last read stands.
"""

from __future__ import annotations

import socket
from time import clock_gettime, monotonic

from deepcoder_sandbox.worker.libc import process_cpu_clock
from deepcoder_sandbox.worker.starvation import Starvation
from deepcoder_sandbox.worker.supervise import cpu_seconds

_MARK_EVERY_S = 0.1


def receive(control: socket.socket, size: int) -> bytes:
    """Return a packet; an empty one at the end.

    A process that left with a packet of ours unread resets the connection, once; what it sent before is still there.
    """
    try:
        return control.recv(size)
    except ConnectionResetError:
        return control.recv(size)


class StepClock:
    """Times the steps of one process."""

    def __init__(self, pid: int, limit_s: float, cpu_s: float, since: float) -> None:
        """Begin the first step at `since` (monotonic), when it had used `cpu_s`.

        `limit_s` is the shortest limit that its steps have.
        """
        self._pid = pid
        self._limit_s = limit_s
        self._cpu_clock = process_cpu_clock(pid)
        self._first = self._started = self._marked = since
        self._started_cpu_s = self._cpu_s = cpu_s
        self._starvation_seen: Starvation | None = None
        self._sampling = False

    def start(self) -> None:
        """Begin a step, where the CPU time of the one before was last looked at.

        What others kept the process from going on is read anew only where it may be more than `_MARK_EVERY_S`: up to
        so much of an earlier step's wait may count for this one's.
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
        """CPU seconds of the step so far, all threads."""
        try:
            now_s = clock_gettime(self._cpu_clock)
        except OSError:  # it is gone
            now_s = self._cpu_s
        self._cpu_s = now_s
        return now_s - self._started_cpu_s

    def look(self) -> tuple[float, str]:
        """Return the seconds of the step so far, less those in which others kept it from going on, and its states.

        What its threads do (`Starvation.states`) is told of a moment up to which all that is left out is known.
        """
        elapsed = monotonic() - self._started
        states = self._starvation().states()
        return elapsed - self._starvation().seconds(), states

    def sample_in_s(self) -> float:
        """Take the sample that `look` rests on, if one is due, and return in how many seconds the next one is.

        The first call of a step takes none: it comes at a moment that the program can foresee.
        """
        starvation = self._starvation()
        if self._sampling:
            starvation.sample()
        else:
            starvation.draw()
            self._sampling = True
        return max(0.0, starvation.sample_at - monotonic())
