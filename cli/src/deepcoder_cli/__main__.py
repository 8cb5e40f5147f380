"""`kubectl deepcoder`: the entry point, named so that kubectl finds it.

Even what all commands need takes a moment to import. It is imported here, after Ctrl-C is handled.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from deepcoder_cli.later import loading


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    with loading():
        from deepcoder_cli.program import main as program
    return program(arguments)


if __name__ == "__main__":
    sys.exit(main())
