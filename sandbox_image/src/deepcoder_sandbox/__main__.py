"""`python -m deepcoder_sandbox` and the `deepcoder-sandbox` command."""

from __future__ import annotations

import sys

from deepcoder_sandbox.cli import run


def main() -> None:
    """Run the command line."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
