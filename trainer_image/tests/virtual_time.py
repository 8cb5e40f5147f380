"""A test on an event loop whose clock moves only while everybody waits: a machine that is slow moves no deadline.

For tests whose parts are all coroutines of this process. What runs in a thread is done at once; a server's or a child
process's answer would never come.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from virtual_clock import run_virtually

P = ParamSpec("P")


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """The test, run so."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        run_virtually(test(*args, **kwargs))

    return run
