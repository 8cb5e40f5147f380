"""Prints what is being done and how long it has taken, on a terminal and in a log alike.

Long steps print again every 15 s, so silence always means that something is stuck.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

_HEARTBEAT_SECONDS = 15.0
_started = time.monotonic()
_lock = threading.Lock()


def say(message: str) -> None:
    """Print one line with the seconds since the tool started."""
    with _lock:
        print(f"[{time.monotonic() - _started:6.1f}s] {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Announce `what`, repeat that while it lasts, and report how long it took or that it failed."""
    began = time.monotonic()
    over = threading.Event()

    def beat() -> None:
        while not over.wait(_HEARTBEAT_SECONDS):
            say(f"{what}: still running after {time.monotonic() - began:.0f} s")

    say(f"{what} …")
    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield
    except BaseException:
        say(f"{what}: FAILED after {time.monotonic() - began:.1f} s")
        raise
    else:
        say(f"{what}: done in {time.monotonic() - began:.1f} s")
    finally:
        over.set()
        beating.join()
