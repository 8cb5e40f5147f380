"""One process per submission: prepares the program once, then runs it for each test that the judge requests.

The judge's first packet brings the program, or says that a file does. When the program is loaded, the judge is told so,
and only then sends one packet per test over the control socket: a program that is still being loaded finds no input to
compute on. Each answer is one packet. Short inputs and outputs are in the packets; long ones are in memory files. Each
further test is requested when the judge has compared the previous one, so the first failure stops the rest. Anything
that a hostile program sends instead is only another claim about its own output.

The judge measures the time, of loading as of each test. It has the alarm sent at the limit, and ends a process that
does not react. Any failure here is raised and ends the process: before `begin` it is the judge's failure, afterwards
the program's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from deepcoder_sandbox.worker import livecodebench
from deepcoder_sandbox.worker.packets import (
    IN_FILE,
    INLINE,
    INLINE_BYTES,
    NOT_PREPARED,
    PREPARED,
    SESSION_BYTES,
    WITH_PROGRAM,
    PlainJob,
)

NULL_IN, NULL_OUT, NULL_ERROR, CONTROL, OUTPUT, GIVEN = range(6)
"""Descriptors of a session's runner. If anything is long, GIVEN has the program, followed by an input."""


def prepare_zygote() -> None:
    """Do once, in the zygote, what is the same for every program."""
    livecodebench.prepare_zygote()


def run(job: PlainJob, begin: Callable[[], None]) -> int:
    """Serve tests until the judge hangs up or the program ends the process; return the exit status.

    `begin` is called before the program's first instruction.
    """
    _, _, source_bytes, name_bytes, _, _ = job
    given_at = source_bytes + name_bytes
    packet = os.read(CONTROL, SESSION_BYTES)
    content = packet[1:] if packet[:1] == WITH_PROGRAM else os.pread(GIVEN, given_at, 0)
    source, fn_name = content[:source_bytes].decode(), content[source_bytes:].decode() or None
    try:
        livecodebench.prepare(source)
    except MemoryError as error:  # the submission chose the limit
        begin()
        _tell_failure(error)
        return 0
    begin()
    _serve(source, fn_name, given_at)
    return 0


def _serve(source: str, fn_name: str | None, given_at: int) -> None:
    """Load the program, say so, and answer one packet after another."""
    try:
        called = livecodebench.load(source, fn_name)
    except Exception as error:
        _tell_failure(error)
        return
    os.write(CONTROL, PREPARED)
    run_one = livecodebench.call_once if fn_name else livecodebench.run_once
    while packet := os.read(CONTROL, SESSION_BYTES):
        given = packet[1:] if packet[:1] == INLINE else os.pread(GIVEN, int(packet[1:]), given_at)
        done = run_one(called, given.decode())
        os.write(CONTROL, _told(done) if isinstance(done, bytes) else json.dumps(done).encode())


def _tell_failure(error: Exception) -> None:
    """Report that nothing can be called."""
    failed = {"compile": isinstance(error, SyntaxError), **livecodebench.describe(error)}
    os.write(CONTROL, NOT_PREPARED + json.dumps(failed).encode())


def _told(output: bytes) -> bytes:
    """Return the packet for an output, which is in the output file if it is long."""
    if len(output) <= INLINE_BYTES:
        return INLINE + output
    os.ftruncate(OUTPUT, len(output))
    written = 0
    while written < len(output):
        written += os.pwrite(OUTPUT, memoryview(output)[written:], written)
    return b"%b%d" % (IN_FILE, len(output))
