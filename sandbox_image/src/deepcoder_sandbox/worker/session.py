"""One process a submission: prepare the program once, then run it for each test that the judge asks for.

The judge sends one packet a test over the control socket, after putting the input into a memory file; the answer is one
packet, and the output in another. The judge compares before it asks for the next, so the first failure stops the rest.
Whatever a hostile program sends instead is only another claim about its own output. The judge keeps the time: it has
the alarm rung at the limit, and ends what does not hear it. Whatever this fails with ends the process, which the judge
sees.
"""

from __future__ import annotations

import json
import os
from typing import NoReturn

from deepcoder_sandbox.worker import livecodebench
from deepcoder_sandbox.worker.packets import Job

NULL_IN, NULL_OUT, NULL_ERROR, CONTROL, CODE, INPUT, OUTPUT = range(7)
"""Descriptors of a session's runner."""

_PACKET_BYTES = 1 << 12


def prepare_zygote() -> None:
    """Do once, in the zygote, what is the same for every program."""
    livecodebench.prepare_zygote()


def run(job: Job) -> NoReturn:
    """Serve tests until the judge hangs up or the program ends the process."""
    status = 1
    try:
        _serve(job.source_bytes, job.name_bytes)
        status = 0
    finally:
        os._exit(status)


def _serve(source_bytes: int, name_bytes: int) -> None:
    content = os.pread(CODE, source_bytes + name_bytes, 0)
    source, fn_name = content[:source_bytes].decode(), content[source_bytes:].decode() or None
    os.write(CONTROL, b'{"started":true}')  # from here on the judge knows this process, and keeps its time
    try:
        called = livecodebench.load(source, fn_name)
    except Exception as error:
        failed = {"prepared": False, "compile": isinstance(error, SyntaxError), **livecodebench.describe(error)}
        os.write(CONTROL, json.dumps(failed).encode())
        return
    os.write(CONTROL, b'{"prepared":true}')
    run_one = livecodebench.call_once if fn_name else livecodebench.run_once
    while packet := os.read(CONTROL, _PACKET_BYTES):
        done = run_one(called, os.pread(INPUT, int(packet), 0).decode())
        if isinstance(done, bytes):
            _put(done)
            os.write(CONTROL, b'{"bytes":%d}' % len(done))
        else:
            os.write(CONTROL, json.dumps(done).encode())


def _put(output: bytes) -> None:
    """Make `output` what the output file holds."""
    os.ftruncate(OUTPUT, len(output))
    written = 0
    while written < len(output):
        written += os.pwrite(OUTPUT, output[written:] if written else output, written)
