"""Ends the trainer's process within a bound, whatever hangs, with the exit status of its record.

By then everything is stored and reported. What remains is Python's own shutdown: joining threads, exit handlers of
libraries (Ray's takes 20 s and more if responses were in flight), and the destructors of native code. Any of these may
hang, and a pod that does not end keeps its GPUs. So after a time limit the process exits without them, after logging
where its threads are, unless that hangs too.

A thread does this. Python threads no longer run when the destructors of native code run, so the handler that is
registered first, and therefore runs last, exits before that. If native code never releases the interpreter,
faulthandler's thread ends the process a little later, with status 1.
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
"""Exit status of an attempt that failed with an unclassified error, and of a process without a record."""

DUMP_SECONDS = 5.0
"""Longest time for logging and dumping stacks: a thread that hangs may hold logging's lock, or stderr may have no
reader."""

_status: int | None = None


def run_last_at_exit() -> None:
    """Register our exit handler before all others, so that it runs last. Call this before any library that registers a
    handler is imported."""
    atexit.register(_leave)


def bound(seconds: float, status: int | None) -> None:
    """Give the process `seconds` to end, with exit status `status`; None: Python's own status."""
    global _status
    _status = status
    timer = threading.Timer(seconds, _give_up, (seconds, CRASHED if status is None else status))
    timer.daemon = True
    timer.start()
    with suppress(Exception):  # stderr may not be a file
        faulthandler.dump_traceback_later(seconds + 2 * DUMP_SECONDS, exit=True)


def _give_up(seconds: float, status: int) -> None:
    dumping = threading.Thread(target=_dump_stacks, args=(seconds,), daemon=True)
    dumping.start()
    dumping.join(DUMP_SECONDS)
    os._exit(status)


def _dump_stacks(seconds: float) -> None:
    log.error("the process did not end within %g s after all was stored, and is ended by force; stacks:", seconds)
    with suppress(Exception):
        faulthandler.dump_traceback()


def _leave() -> None:
    if _status is None:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(_status)
