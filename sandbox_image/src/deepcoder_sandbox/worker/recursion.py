"""Takes the runner's own calls out of the depth of recursion, so that a program has its whole limit, as a script has.

The state of a thread holds how many more calls may be nested. A program that runs inside our calls would meet its limit
seven calls early: one that recurses 995 deep would fail here and nowhere else. Neither Python nor its C API can change
that count, so it is written in place. A zygote looks for it once. If it is not found (another interpreter), nothing is
changed, and nothing fails.
"""

from __future__ import annotations

import ctypes
import sys

_WORDS = 32
"""How far into the state to look."""

_MOST_CALLS = 100
"""More calls than are nested during the search."""

_count: memoryview | None = None
"""How many more calls may be nested, followed by the limit."""


def prepare_zygote() -> None:
    """Look for the count."""
    global _count
    state = ctypes.pythonapi.PyThreadState_Get
    state.restype = ctypes.c_void_p
    words = memoryview((ctypes.c_int * _WORDS).from_address(state())).cast("B").cast("i")
    limit = sys.getrecursionlimit()
    places = [at for at in range(_WORDS - 1) if words[at + 1] == limit and 0 < limit - words[at] < _MOST_CALLS]
    sys.setrecursionlimit(limit + 1)
    found = [at for at in places if words[at + 1] == limit + 1]
    sys.setrecursionlimit(limit)
    _count = words[found[0] : found[0] + 2] if len(found) == 1 else None


def start_anew() -> None:
    """From here on, do not count the current calls."""
    if _count is not None:
        _count[0] = _count[1]
