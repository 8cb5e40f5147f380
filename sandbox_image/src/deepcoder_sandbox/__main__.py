"""`python -m deepcoder_sandbox` and the `deepcoder-sandbox` command: the command line in a process of its own.

What concerns the whole process is done here: logs, reaping where it is pid 1, and that no other process of its user may
look into it, which holds the token and the expected outputs.
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
