"""The end of the trainer's process, which has a bound whatever hangs in it, and the exit status of its record.

All is stored and told by then. What is left is Python's own end: threads that are waited for, what libraries have
registered to be done last (Ray's end takes 20 s and more after responses in flight were left), and then native code's
destructors. Any of these may hang, and a pod that does not end keeps its GPUs. So there is a time after which the
process leaves without them, having said where its threads stand, unless that hangs, too. A thread does that, and none
of Python's runs any more when native code has its turn: what is registered first is done last, and leaves before that.
Native code that keeps the interpreter to itself is left a little later by faulthandler's thread, whose status is 1.
"""

from __future__ import annotations

import atexit
import faulthandler
import logging
import os
import sys
import threading
from contextlib import suppress

log = logging.getLogger(__name__)

CRASHED = 1
"""Exit status of an attempt that failed by an error of no kind of its own, and of a process without a record."""

SAYING_SECONDS = 5.0
"""Most of the time for saying it: what hangs may hold a lock of logging's, or wait for whoever should read stderr."""

_status: int | None = None


def leave_last() -> None:
    """Nothing comes after what is registered from here on: to be called before libraries are loaded that register."""
    atexit.register(_leave)


def bound(seconds: float, status: int | None) -> None:
    """Give the process so many seconds to end, with this exit status; None: with Python's own."""
    global _status
    _status = status
    timer = threading.Timer(seconds, _give_up, (seconds, CRASHED if status is None else status))
    timer.daemon = True
    timer.start()
    with suppress(Exception):  # stderr may be no file
        faulthandler.dump_traceback_later(seconds + 2 * SAYING_SECONDS, exit=True)


def _give_up(seconds: float, status: int) -> None:
    saying = threading.Thread(target=_say, args=(seconds,), daemon=True)
    saying.start()
    saying.join(SAYING_SECONDS)
    os._exit(status)


def _say(seconds: float) -> None:
    log.error("the process has not ended within %g s after all was stored, and is left: its threads stand at", seconds)
    with suppress(Exception):
        faulthandler.dump_traceback()


def _leave() -> None:
    if _status is None:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(_status)
