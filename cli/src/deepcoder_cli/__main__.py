"""`kubectl deepcoder`: the entry point, named so that kubectl finds it.

The modules that all commands need take most of a second to import. They are imported here, after Ctrl-C is handled: a
user who interrupts the import exits at once, without a traceback. Afterwards Ctrl-C is handled by the program as usual.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from deepcoder_cli.exit_codes import Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    before = signal.getsignal(signal.SIGINT)
    # Not if Ctrl-C is ignored, as in the background, nor in a thread, which cannot handle signals.
    ours = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, _leave)
    from deepcoder_cli.program import main as program

    if ours:
        signal.signal(signal.SIGINT, before)
    return program(arguments)


def _leave(*_: Any) -> None:
    """Exit at once: nothing has started that needs to be cleaned up."""
    os._exit(Exit.INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
