"""A rehearsal for sessions: the zygote runs our own samples in its own process, before it serves programs in copies.

`dry_run` explains why. The rehearsal leaves nothing else behind: what a runner changes in its interpreter before a
program is undone.

Raises RuntimeError if a sample is not answered correctly, because then no program would be.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from deepcoder_sandbox.worker import confine, dry_run, livecodebench, session
from deepcoder_sandbox.worker.packets import INLINE, PREPARED, SESSION_BYTES, WITH_PROGRAM, Job

run: Final = session.run


def prepare_zygote(harmless: confine.Confinement) -> None:
    """Do once, in the zygote, what is the same for every program, and serve each sample several times.

    Descriptors of runners are closed, and used as runners use them.
    """
    session.prepare_zygote()
    with _as_it_was():
        for source, fn_name, given, told in dry_run.SAMPLES * dry_run.TIMES:
            answers = _serve(source, fn_name, given, harmless)
            if answers != [PREPARED, INLINE + told]:
                raise RuntimeError(f"a sample was answered by {answers}")


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Undo at the end what preparing for a program does to the interpreter."""
    modules, recursion_limit = dict(sys.modules), sys.getrecursionlimit()
    with livecodebench.without_a_program():
        yield
    sys.setrecursionlimit(recursion_limit)
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]
    sys.modules.update(modules)


def _serve(source: bytes, fn_name: bytes, given: bytes, harmless: confine.Confinement) -> list[bytes]:
    """Act as the runner of a session with one test; return its answers."""
    os.closerange(session.CONTROL, confine.RUNNERS_DESCRIPTORS)  # what is opened now has a runner's numbers
    control, near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with control, socket.socket(fileno=confine.out_of_the_way(near.fileno())) as judge:
        near.close()
        judge.send(WITH_PROGRAM + source + fn_name)
        judge.send(INLINE + given)
        judge.shutdown(socket.SHUT_WR)
        job = Job("stdin", dry_run.ABOVE_ALL, len(source), len(fn_name))
        dry_run.become_runner(session.run, job, harmless, sessions=True)
        control.close()
        return list(iter(lambda: judge.recv(SESSION_BYTES), b""))
