"""A file lock that excludes concurrent runs of the tool, however the holder ends.

The kernel releases a `flock` with its holder, so a killed run never locks out the next. The holder may remove the file:
a process that waited for it then waits for the file that is there now. Fails with `LockTimeout` after a stated wait,
naming the holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path


class LockTimeout(RuntimeError):
    """Another process held the lock for the whole wait."""


@contextlib.contextmanager
def exclusive(path: Path, what: str, wait_seconds: float = 3600) -> Iterator[None]:
    """Hold the lock file `path` while `what` is done; wait for another holder up to `wait_seconds`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as opened:
        handle = opened.enter_context(path.open("a+"))
        deadline = time.monotonic() + wait_seconds
        told = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _lies_at(path, handle.fileno()):
                    break
                handle = opened.enter_context(path.open("a+"))
            except BlockingIOError:
                handle.seek(0)
                holder = handle.read().strip() or "another process"
                if time.monotonic() >= deadline:
                    raise LockTimeout(f"{what}: {holder} still holds {path} after {wait_seconds:.0f} s") from None
                if not told:
                    print(f"devcluster: {what} waits for {holder}", file=sys.stderr, flush=True)
                    told = True
                time.sleep(0.2)
        handle.seek(0)
        handle.truncate()
        handle.write(f"process {os.getpid()} ({what})")
        handle.flush()
        yield


def _lies_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
