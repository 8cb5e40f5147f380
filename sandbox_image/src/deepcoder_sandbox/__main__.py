"""`python -m deepcoder_sandbox` and the `deepcoder-sandbox` command: the command line in a process of its own.

This module does what concerns the whole process: it configures logs, reaps children if it is pid 1, and keeps other
processes of its user from reading its memory, which holds the token and the expected outputs.
"""

from __future__ import annotations

import sys

from deepcoder_sandbox.cli import run
from deepcoder_sandbox.server.logs import configure
from deepcoder_sandbox.server.pid1 import split_off
from deepcoder_sandbox.worker import libc

_INTERRUPTED = 130


def main() -> None:
    """Run the command line."""
    configure()
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    try:
        status = split_off()
        sys.exit(run(sys.argv[1:]) if status is None else status)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
