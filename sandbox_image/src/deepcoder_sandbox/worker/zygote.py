"""The zygote: a small warm Python process that forks one confined runner for each requested run.

It exchanges packets and descriptors with the judge over a socket pair, and never reads the content of the descriptors:
the next submission's runner is a copy of this process and must find nothing of the previous one. It ends when the judge
closes the connection.

Every test pays, page by page, for what the zygote does between two forks (`packets`). So it does little, and what can
be done once is done in `boot`.

If a run cannot be started, or our own code in a runner fails before the program's first instruction, the answer is
`error`: the judge's failure, never the program's. The runner reports it on a page that it shares with the zygote up to
that instruction, and that no program can find.
"""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Callable
from os import close, closerange, write
from time import monotonic, process_time

from deepcoder_sandbox.worker import confine, packets, supervise
from deepcoder_sandbox.worker.libc import bare_fork as fork
from deepcoder_sandbox.worker.packets import (
    CANCELLED,
    CLEAN_AT,
    JOB_BYTES,
    SETUP_AT,
    STATUS_AT,
    TO_A_RUN,
    PlainJob,
    decode_job,
)
from deepcoder_sandbox.worker.thread_gate import ThreadGate

_DESCRIPTOR_BYTES = 4
_ANCILLARY_BYTES = socket.CMSG_SPACE(confine.RUNNERS_DESCRIPTORS * _DESCRIPTOR_BYTES)
_CUT = int(socket.MSG_CTRUNC | socket.MSG_TRUNC)
_FAILED = 1
_SETUP_S, _STARTED_AT = 1, 2  # after the packet's prefix
_REASON_AT, _REASON_BYTES = packets.STARTED_BYTES, 500
_MORE_THAN_0_S = 1e-9


class NotStarted(OSError):
    """A runner ended before its program started, not because of its text."""


class Zygote:
    """Serves runs on one socket, one at a time."""

    def __init__(
        self,
        channel: socket.socket,
        confinement: confine.Confinement,
        proc: int,
        gate: ThreadGate | None,
        run: Callable[[PlainJob, Callable[[], None]], int],
        *,
        sessions: bool,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        """`proc` is a descriptor of /proc, `sessions` whether the judge says when runs are over.

        `run` is what a runner does once it is confined: it calls its second argument right before the program's first
        instruction, and returns the exit status, or raises SystemExit to have the interpreter end by itself. A runner
        exits through `leave`, which returns in a rehearsal.
        """
        self._pid = os.getpid()
        self._leave = leave
        self._channel = channel
        self._channel_number = channel.fileno()
        self._sessions = sessions
        self.sockets: list[socket.socket] = []
        """Those that an ending interpreter must not close: their numbers may be files of the program by then."""
        self._kept = self._channel_number if sessions else confine.NO_DESCRIPTOR
        """The descriptor that a confined runner keeps, to make itself known and then close it."""
        self._confinement = confinement
        self._supervisor = supervise.Supervisor(channel, proc, gate, self._setup_cpu_s, sessions=sessions)
        self._run_program = run
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        """Shared with the runner until its program starts: the fields below, then why starting it failed."""
        self._page[: len(packets.STARTED)] = packets.STARTED
        self._started = memoryview(self._page)[: packets.STARTED_BYTES]
        """The packet by which a session's runner makes itself known, at the start of the page."""
        self._numbers = memoryview(self._page).cast("d")
        """Two numbers in it: CPU seconds that confining took, 0 before it is done, and when it was done."""

    def serve(self, after_run: Callable[[], None]) -> None:
        """Answer requests until the judge hangs up. `after_run` cleans up what a program may have left."""
        closerange(0, confine.RUNNERS_DESCRIPTORS)  # received descriptors get these numbers, in order
        while True:
            packet, ancillary, flags, _ = self._channel.recvmsg(JOB_BYTES, _ANCILLARY_BYTES)
            if not packet:
                return
            if packet in TO_A_RUN:  # whose end came first
                continue
            received = 0
            for _, _, data in ancillary:
                received += len(data) // _DESCRIPTOR_BYTES
            try:
                if flags & _CUT:
                    raise OSError("a part of a request, or descriptors, were lost on the way")
                answer = self._run(packet, received, after_run)
            except (OSError, ValueError) as error:
                closerange(0, received)
                answer = packets.ERROR + f"{type(error).__name__}: {error}".encode()
            self._channel.send(answer)

    def _setup_cpu_s(self) -> float:
        return self._numbers[_SETUP_S]

    def _run(self, packet: bytes, descriptors: int, after_run: Callable[[], None]) -> bytes | memoryview:
        self._numbers[_SETUP_S] = 0.0
        self._page[_REASON_AT] = 0
        # Decoded before the fork, so that it is not done on both sides. In a session, only the runner needs it.
        job = None if self._sessions else decode_job(packet)
        pid = fork()
        if pid == 0:
            self.become_runner(packet, descriptors, self._pid, job)
            os._exit(_FAILED)
        if pid < 0:
            raise OSError("the kernel starts no other process")
        closerange(0, descriptors)  # or the judge would not see the runner hang up as it ends
        killed_for = self._supervisor.wait(pid, packet, job)
        setup_s = self._numbers[_SETUP_S]
        if not setup_s or self._page[_REASON_AT]:
            reason = self._page[_REASON_AT : _REASON_AT + _REASON_BYTES].partition(b"\0")[0].decode(errors="replace")
            status = self._supervisor.reaped.integers[STATUS_AT]
            how = "ended by the judge" if killed_for is None else f"wait status {status}"
            raise NotStarted(f"the runner ended before its program started ({how}): {reason}")
        clean = True
        try:
            after_run()
        except (OSError, RecursionError):
            clean = False
        if killed_for is None:
            return CANCELLED[clean]
        reaped = self._supervisor.reaped
        reaped.floats[SETUP_AT] = setup_s
        reaped.integers[CLEAN_AT] = clean
        return reaped.packet_of_killed(killed_for) if killed_for else reaped.packet

    def become_runner(self, packet: bytes, descriptors: int, zygote: int, job: PlainJob | None = None) -> None:
        """Confine this copy, mark it ready and hand it to the program. The copy never returns as a zygote.

        `job` is the decoded packet, None if it is not decoded yet.
        """
        status = _FAILED
        try:
            job = job or decode_job(packet)
            self._confinement.apply(job[1], zygote, descriptors, self._kept)
            numbers = self._numbers
            numbers[_SETUP_S] = process_time() + _MORE_THAN_0_S  # the clock of a process may lag by a tick
            if self._sessions:
                numbers[_STARTED_AT] = monotonic()
                write(self._channel_number, self._started)
                close(self._channel_number)
            status = self._run_program(job, self._begin)
        except SystemExit:
            for each in self.sockets:
                each.detach()
            raise
        except BaseException as error:
            if not self._page.closed:
                reason = repr(error).encode(errors="replace")[: _REASON_BYTES - 1] + b"\0"
                self._page[_REASON_AT : _REASON_AT + len(reason)] = reason
        self._leave(status)

    def _begin(self) -> None:
        """Release the page: from here on nothing that this copy claims is the judge's failure."""
        self._numbers.release()
        self._started.release()
        self._page.close()
