"""Whether the time that something takes grows with its length and not with a power of it, on a machine of any speed."""

from __future__ import annotations

import time
from collections.abc import Callable

SHORTER = 8
"""How many times shorter the other length is: what is linear takes about so many times less, what is quadratic 64."""

_MOST = 3 * SHORTER
_TRIES = 3
_LOOKED_UP_S = 0.02
"""What takes less has not been at its input at all."""


def outgrows(short: Callable[[], object], long: Callable[[], object]) -> str:
    """Run both, the same of an input and of one `SHORTER` times as short; return what is wrong, empty where nothing is.

    CPU time: a neighbour makes a try slower at most, so the fastest long one is held against the slowest short one.
    """
    short_s, long_s = 0.0, float("inf")
    for _ in range(_TRIES):
        short_s, long_s = max(short_s, _took(short)), min(long_s, _took(long))
        if long_s <= _MOST * max(short_s, _LOOKED_UP_S / SHORTER):
            return ""
    return f"{long_s:.3g} s, and {short_s:.3g} s for an input {SHORTER} times as short"


def _took(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began
