"""Modules that are loaded when they are needed.

A shell starts the program for every completion, and most of what the commands use (kubernetes, pydantic, rich) takes
longer to load than that may take. So what help and completion show is declared in `usage` without these libraries, and
refers to the functions that do the work by name. A name without a function is a defect; a test looks up all of them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from deepcoder_cli.exit_codes import Exit


@contextmanager
def loading() -> Iterator[None]:
    """Let Ctrl-C end the program at once and without a traceback while modules are imported in this context.

    Otherwise the exception would be raised somewhere within an import, whose code may take it for another one.
    """
    before = signal.getsignal(signal.SIGINT)
    # Not if Ctrl-C is ignored, as in the background, nor in a thread, which cannot handle signals.
    ours = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


class Later:
    """A function of this package, imported when it is called."""

    def __init__(self, name: str) -> None:
        """`name` is MODULE:FUNCTION, as in `commands.status:status`."""
        self._module, _, self._function = name.partition(":")

    def function(self) -> Callable[..., Any]:
        """Import the module and return the function."""
        with loading():
            module = import_module(f"deepcoder_cli.{self._module}")
        found: Callable[..., Any] = getattr(module, self._function)
        return found

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Import and call the function."""
        return self.function()(*arguments, **named)


def _leave(*_: Any) -> None:
    """Exit at once: nothing has started that needs to be cleaned up."""
    os._exit(Exit.INTERRUPTED)
