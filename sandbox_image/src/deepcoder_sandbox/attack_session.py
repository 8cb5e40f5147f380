"""Runs a hostile program in a session (livecodebench), for the judge's attack on itself: one test, whatever it outputs.

The harness's stand-ins for `open`, stdin and parts of `os` are no protection, so the attacks bypass them. Raises
ZygoteFailed if the zygote fails. A program that ends, hangs or is killed leaves no output, which is part of the result.
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
"""Number of descriptors that a session's program is given."""


def run(zygote: ZygoteProcess, source: bytes, stdin: bytes, limits: RunLimits, deadline: float) -> Execution:
    """Run the program once. What the session reports instead of an output becomes stderr. Raises ZygoteFailed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        with ours, theirs, MemoryFile("given", source + stdin) as given, MemoryFile("output") as output:
            ours.send(IN_FILE)
            ours.send(b"%b%d" % (IN_FILE, len(stdin)))
            files = [null, null, null, theirs.fileno(), output.fileno(), given.fileno()]
            zygote.start_run(Job(Kind.STDIN, limits, len(source)), files)
            zygote.tell_hung_up()  # otherwise the zygote would not look for the session's end for a second
            theirs.close()
            packet = _answer(ours, wait_deadline(limits, deadline))
            ours.close()  # which ends the session
            ended = zygote.finish_run(wait_deadline(limits, deadline))
            stdout = packet[1:] if packet[:1] == INLINE else b""
            if packet[:1] == IN_FILE:
                stdout = output.read(limits.file_bytes)
            return Execution(ended, stdout, answer=b"", written_bytes=output.size(), stderr=b"" if stdout else packet)
    finally:
        os.close(null)


def _answer(control: socket.socket, until: float) -> bytes:
    """Return the session's answer to its one test; empty if it has ended or does not answer in time."""
    packet = PREPARED
    while packet == PREPARED:
        control.settimeout(max(0.001, until - time.monotonic()))
        try:
            packet = control.recv(SESSION_BYTES)
        except OSError:
            return b""
    return packet
