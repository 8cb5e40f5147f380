"""Exit codes, for scripts. `--help`, the docs and the code take their meanings from here."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """How a command ended."""

    DONE = 0
    NOT_SO = 1
    USAGE = 2
    NOT_FOUND = 3
    FORBIDDEN = 4
    REFUSED = 5
    UNREACHABLE = 6
    OTHER_RELEASE = 7
    DEFECT = 70
    INTERRUPTED = 130
    CLOSED_PIPE = 141


MEANINGS = {
    Exit.DONE: "done",
    Exit.NOT_SO: "the answer is no: the run failed or did not end in time, a chain is broken, a plan does not fit",
    Exit.USAGE: "wrong usage, or a file that cannot be read",
    Exit.NOT_FOUND: "no such run, or the run does not have the requested data yet",
    Exit.FORBIDDEN: "a permission is missing; the message says which, and which role grants it",
    Exit.REFUSED: "the API server refuses the change",
    Exit.UNREACHABLE: "no usable kubeconfig, or the API server or the bucket does not answer",
    Exit.OTHER_RELEASE: "another release wrote the run, and this one cannot read it",
    Exit.DEFECT: "a defect of this program, with a traceback: the question was not answered",
    Exit.INTERRUPTED: "interrupted",
    Exit.CLOSED_PIPE: "the reader of the output closed it, as head does: 128 + SIGPIPE, as with kubectl",
}
