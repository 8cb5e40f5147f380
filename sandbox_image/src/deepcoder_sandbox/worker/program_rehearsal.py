"""A rehearsal for one process per test: the zygote runs our own samples in its own process, before it serves.

`dry_run` explains why. Each sample runs as it does for a submission's first test, which compiles it, and as for all
others, which load the code object. The rehearsal leaves nothing else behind: descriptors, standard streams, modules
and the program's module are restored.

Raises RuntimeError if a sample is not answered correctly, because then no program would be.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from deepcoder_sandbox.worker import confine, dry_run, program
from deepcoder_sandbox.worker.packets import Job

run: Final = program.run

_MOST_BYTES: Final = 64
"""An answer of a sample is shorter."""


def prepare_zygote(harmless: confine.Confinement) -> None:
    """Do once, in the zygote, what is the same for every program, and run each sample several times.

    Descriptors of runners are closed, and used as runners use them.
    """
    program.prepare_zygote()
    os.closerange(program.REPORT, confine.RUNNERS_DESCRIPTORS)
    with _as_it_was():
        for source, fn_name, given, told in dry_run.SAMPLES * dry_run.TIMES:
            answers = _judge(source, fn_name, given, harmless)
            if answers != [told, told]:
                raise RuntimeError(f"a sample was answered by {answers}")


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Restore at the end what the samples' programs use."""
    modules, streams = dict(sys.modules), (sys.stdin, sys.stdout, sys.__stdin__, sys.__stdout__)
    kept = [confine.out_of_the_way(number) for number in (program.STDIN, program.STDOUT)]
    yield
    for number, descriptor in enumerate(kept):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.closerange(program.REPORT, confine.RUNNERS_DESCRIPTORS)
    vars(sys).update(zip(("stdin", "stdout", "__stdin__", "__stdout__"), streams, strict=True))
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]
    program.unload()


def _judge(source: bytes, fn_name: bytes, given: bytes, harmless: confine.Confinement) -> list[bytes]:
    """Act as the runners of two tests of a submission; return their answers."""
    text = source + fn_name
    code = confine.out_of_the_way(_file(program.CODE, text))
    answers, compiled_bytes = [], 0
    for _ in range(2):
        os.dup2(code, program.CODE)
        _file(program.STDIN, given)
        for number in (program.STDOUT, program.REPORT):
            _file(number, b"")
        program.unload()
        kind = "function" if fn_name else "stdin"
        job = Job(kind, dry_run.ABOVE_ALL, len(source), len(fn_name), compiled_bytes)
        with open(program.STDIN, closefd=False) as stdin, open(program.STDOUT, "w", closefd=False) as stdout:
            vars(sys).update(stdin=stdin, stdout=stdout, __stdin__=stdin, __stdout__=stdout)
            dry_run.become_runner(program.run, job, harmless, sessions=False)
        answers.append(os.pread(program.REPORT if fn_name else program.STDOUT, _MOST_BYTES, 0))
        compiled_bytes = os.fstat(code).st_size - len(text)
    os.close(code)
    return answers


def _file(number: int, content: bytes) -> int:
    """Open a new file in memory under this number, as the judge sends them; return the number."""
    descriptor = os.memfd_create("rehearsal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    if descriptor != number:
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.pwrite(number, content, 0)
    return number
