"""The time that one step of a session takes, measured on the judge's side, where no program can forge or forget it.

The kernel names the runner: its first packet, sent before the program is loaded, carries its pid. CPU time is read from
the process's own clock, wall-clock time leaves out what others kept it waiting for a processor. Where a process is
gone, the time that was last read stands.
"""

from __future__ import annotations

import socket
import struct
import time

from deepcoder_sandbox.worker.starvation import Starvation
from deepcoder_sandbox.worker.supervise import cpu_seconds
from deepcoder_sandbox.zygote_process import ZygoteFailed

_MARK_EVERY_S = 0.1
_CREDENTIALS = struct.Struct("iII")


def receive(control: socket.socket, size: int, ancillary_bytes: int = 0) -> tuple[bytes, list[tuple[int, int, bytes]]]:
    """Return a packet and what came beside it; an empty one at the end.

    A process that left with a packet of ours unread resets the connection, once; what it sent before is still there.
    """
    try:
        return control.recvmsg(size, ancillary_bytes)[:2]
    except ConnectionResetError:
        return control.recvmsg(size, ancillary_bytes)[:2]


def receive_with_pid(control: socket.socket, size: int) -> tuple[bytes, int]:
    """Return a packet and the sender's pid, as the kernel tells it. Raises ZygoteFailed where it does not."""
    packet, ancillary = receive(control, size, socket.CMSG_SPACE(_CREDENTIALS.size))
    control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid: int = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0]
            if pid > 0:
                return packet, pid
    raise ZygoteFailed("the kernel did not say which process is the runner")


class StepClock:
    """Times the steps of one process."""

    def __init__(self, pid: int, limit_s: float, since: float) -> None:
        """`limit_s` is the shortest limit that its steps have, `since` (monotonic) when it was asked for."""
        self._pid = pid
        self._starvation = Starvation(pid, lambda: cpu_seconds(pid), limit_s, since)
        self._cpu_s = 0.0
        self._marked = since
        self.start()

    def start(self) -> None:
        """Begin a step.

        What the process has waited for a processor is read anew only where it may be more than `_MARK_EVERY_S`: up to
        so much of an earlier step's wait may count for this one's.
        """
        self._started_cpu_s = self._cpu_s = self._read_cpu()
        self._started = time.monotonic()
        self._sampling = False
        if self._started - self._marked > _MARK_EVERY_S:
            self._starvation.mark()
            self._marked = self._started

    def _read_cpu(self) -> float:
        now = cpu_seconds(self._pid)
        return self._cpu_s if now is None else now

    def cpu_s(self) -> float:
        """CPU seconds of the step so far, all threads."""
        self._cpu_s = self._read_cpu()
        return self._cpu_s - self._started_cpu_s

    def wall_s(self) -> float:
        """Seconds of the step so far, less those that others kept it waiting for a processor."""
        elapsed = time.monotonic() - self._started
        return elapsed - self._starvation.seconds()

    def sample_in_s(self) -> float:
        """Take the sample that `wall_s` rests on, if one is due, and return in how many seconds the next one is.

        The first call of a step takes none: it comes at a moment that the program can foresee.
        """
        if self._sampling:
            self._starvation.sample()
        else:
            self._starvation.draw()
            self._sampling = True
        return max(0.0, self._starvation.sample_at - time.monotonic())

    def is_runnable(self) -> bool:
        """Whether it runs, or waits for a processor, now: then `wall_s` may count a wait that is still going on."""
        return self._starvation.is_runnable()
