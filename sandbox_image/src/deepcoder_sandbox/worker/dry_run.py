"""Rehearses, in the zygote's own process and without effect, the steps of becoming a runner, before the zygote serves.

An interpreter keeps in memory what it learns about the code that it runs (specialised instructions, cached attributes).
A copy that has to learn this does so for one program only, and copies the pages that hold it. A copy of an interpreter
that has already learnt it need not. So everything that a runner does before its program is done here in advance,
several times, with steps that confine nothing.

Raises RuntimeError if that fails, because it would then fail for every program.
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

ABOVE_ALL: Final = RunLimits(1e12, 1e12, memory_limit_mb=1 << 42, file_bytes=1 << 62)
"""Limits that limit nothing."""

_PROGRAM: Final = b"""import sys
from collections import deque

def solve(n: int) -> int:  # as it is
    return n

def main():
    read = deque([
        int(word)
        for word in sys.stdin.readline().split()
    ])
    print(solve(read[0]), int(input()), f"{read}"[:0])

if __name__ == "__main__":
    main()
"""
_METHOD: Final = b"""class Solution:
    def same(self, n):
        return n
"""
SAMPLES: Final = ((_PROGRAM, b"", b"3\n5\n", b"3 5 \n"), (_METHOD, b"same", b"3", b"3"))
"""For each sample: the program, the function to call, its input, and the answer."""

_PAST_ALL: Final = 1 << 20


def become_runner(
    run: Callable[[PlainJob, Callable[[], None]], int], job: Job, confinement: Confinement, *, sessions: bool
) -> None:
    """Do what a runner does for `job`, whose limits are `ABOVE_ALL`, and return. `confinement` is a harmless one."""
    statuses: list[int] = []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        served = zygote.Zygote(ours, confinement, -1, None, run, sessions=sessions, leave=statuses.append)
        packet = encode_job(job)
        served.become_runner(packet, _PAST_ALL, os.getppid(), None if sessions else decode_job(packet))
        if sessions:  # then a runner closes it
            ours.detach()
    gc.disable()
    if statuses != [0]:
        raise RuntimeError(f"a rehearsal ended with status {statuses}")
