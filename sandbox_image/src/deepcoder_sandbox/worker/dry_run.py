"""Becoming a runner to no effect, in the zygote's own process, before it serves.

What an interpreter learns of code that it runs (instructions adapted to what they met, attributes found) lies in its
memory. A copy that had to learn it would do so for one program alone, and copy the pages that hold it; a copy of one
that has learnt it need not. So all that a runner does up to its program is done here beforehand, several times, by
steps that confine nothing.

Raises RuntimeError where that fails: then it would fail for every program.
"""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable
from typing import Final

from deepcoder_sandbox.worker import zygote
from deepcoder_sandbox.worker.confine import Confinement
from deepcoder_sandbox.worker.packets import Job, PlainJob, RunLimits, decode_job, encode_job

TIMES: Final = 12
"""An interpreter begins to adapt a function when it has been called eight times."""

_ABOVE_ALL: Final = RunLimits(1e12, 1e12, memory_limit_mb=1 << 42, file_bytes=1 << 62)
_PAST_ALL: Final = 1 << 20


def become_runner(
    run: Callable[[PlainJob, Callable[[], None]], int],
    source_bytes: int,
    name_bytes: int,
    confinement: Confinement,
    *,
    sessions: bool,
) -> None:
    """Do as a runner does that was asked for, and come back. `confinement` is a harmless one."""
    statuses: list[int] = []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        served = zygote.Zygote(ours, confinement, -1, None, run, sessions=sessions, leave=statuses.append)
        packet = encode_job(Job("stdin", _ABOVE_ALL, source_bytes, name_bytes))
        served.become_runner(packet, _PAST_ALL, os.getppid(), None if sessions else decode_job(packet))
        if sessions:  # then a runner closes it
            ours.detach()
    gc.disable()
    if statuses != [0]:
        raise RuntimeError(f"a rehearsal ended with status {statuses}")
