"""A hostile program in a session (livecodebench), for the judge's attack on itself: one test, whatever its output.

The harness's stand-ins for `open`, stdin and parts of `os` are no protection, so the attacks go round them. Fails with
ZygoteFailed where the zygote does; a program that ends, hangs or is ended leaves no output, and that it has none is
part of the result.
"""

from __future__ import annotations

import os
import socket
import time

from deepcoder_contracts.judge import Kind
from deepcoder_sandbox.execution import Execution, wait_deadline
from deepcoder_sandbox.memory_file import MemoryFile
from deepcoder_sandbox.worker.packets import IN_FILE, INLINE, PREPARED, SESSION_BYTES, Job, RunLimits
from deepcoder_sandbox.zygote_process import ZygoteProcess

DESCRIPTORS = 6
"""That a session's program has by right."""


def run(zygote: ZygoteProcess, source: bytes, stdin: bytes, limits: RunLimits, deadline: float) -> Execution:
    """Run the program once. Raises ZygoteFailed; what the session tells instead of an output counts as stderr."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        with ours, theirs, MemoryFile("given", source + stdin) as given, MemoryFile("output") as output:
            ours.send(b"%b%d" % (IN_FILE, len(stdin)))
            files = [null, null, null, theirs.fileno(), output.fileno(), given.fileno()]
            zygote.start_run(Job(Kind.STDIN, limits, len(source)), files)
            zygote.tell_hung_up()  # a session's limits are seconds, and no end of it is looked for in the first
            theirs.close()
            packet = _answer(ours, wait_deadline(limits, deadline))
            ours.close()  # on which a session ends
            ended = zygote.finish_run(wait_deadline(limits, deadline))
            stdout = packet[1:] if packet[:1] == INLINE else b""
            if packet[:1] == IN_FILE:
                stdout = output.read(limits.file_bytes)
            return Execution(ended, stdout, answer=b"", written_bytes=output.size(), stderr=b"" if stdout else packet)
    finally:
        os.close(null)


def _answer(control: socket.socket, until: float) -> bytes:
    """Return what the session says of its one test; empty where it has ended, or says nothing in time."""
    packet = PREPARED
    while packet == PREPARED:
        control.settimeout(max(0.001, until - time.monotonic()))
        try:
            packet = control.recv(SESSION_BYTES)
        except OSError:
            return b""
    return packet
