"""Runs a program once in a process of its own: texts go in, and how it ended and what it wrote come out.

Raises ZygoteFailed if no run was completed, and OSError if the judge has no descriptor or memory left for the files.
Both are the judge's failures. Whatever the program does is part of the result.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from deepcoder_contracts.judge import Kind
from deepcoder_sandbox.limits import CLAIM_BYTES
from deepcoder_sandbox.memory_file import MemoryFile
from deepcoder_sandbox.outcome import Claim, read_claim
from deepcoder_sandbox.worker.packets import Job, RunEnded, RunLimits
from deepcoder_sandbox.zygote_process import ZygoteProcess

_ANSWER_GRACE_S = 20.0


@dataclass
class Program:
    """A program in a memory file: its source, its function's name, and after the first run its code object."""

    code: MemoryFile
    source_bytes: int
    kind: Kind
    name_bytes: int = 0
    preamble: bool = False
    """Whether the released reward's imports precede it (taco-compat)."""
    compiled_bytes: int = 0
    """Length of the code object, once the first runner has stored and sealed it. After that it never changes."""


@dataclass(frozen=True)
class Execution:
    """The result of a run."""

    ended: RunEnded
    stdout: bytes
    """The beginning of stdout, at most as long as the limit on its size."""
    answer: bytes
    """What the program's process reported."""
    written_bytes: int
    """Size of the larger of stdout and stderr."""
    stderr: bytes
    """The end of stderr."""

    @property
    def claim(self) -> Claim:
        """What the program said about itself, if the report is short enough to be a claim."""
        return read_claim(self.answer) if len(self.answer) <= CLAIM_BYTES else Claim()


def wait_deadline(limits: RunLimits, deadline: float) -> float:
    """Return when (monotonic) a zygote must have ended a run: well past its backstop, for a busy machine."""
    return min(deadline, time.monotonic() + 4 * limits.wall_limit_s + _ANSWER_GRACE_S)


def execute(
    zygote: ZygoteProcess, program: Program, stdin_text: bytes, limits: RunLimits, deadline: float, answer_bytes: int
) -> Execution:
    """Run the program once, with room for an answer of `answer_bytes`. Raises ZygoteFailed."""
    with (
        MemoryFile("stdin", stdin_text, capacity=len(stdin_text)) as stdin,
        MemoryFile("stdout") as stdout,
        MemoryFile("stderr") as stderr,
        MemoryFile("report", capacity=answer_bytes) as report,
    ):
        code, source_bytes, name_bytes = program.code, program.source_bytes, program.name_bytes
        if not program.compiled_bytes and code.sealed():
            program.compiled_bytes = code.size() - source_bytes - name_bytes
        job = Job(program.kind, limits, source_bytes, name_bytes, program.compiled_bytes, program.preamble)
        zygote.start_run(job, [file.fileno() for file in (stdin, stdout, stderr, report, code)])
        ended = zygote.finish_run(wait_deadline(limits, deadline))
        out_bytes, error_bytes = stdout.size(), stderr.size()
        return Execution(
            ended=ended,
            stdout=stdout.content(min(out_bytes, limits.file_bytes)),
            answer=report.content(report.written()),
            written_bytes=max(out_bytes, error_bytes),
            stderr=stderr.content(min(error_bytes, CLAIM_BYTES), max(0, error_bytes - CLAIM_BYTES)),
        )
