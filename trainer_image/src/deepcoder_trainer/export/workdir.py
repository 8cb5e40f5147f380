"""The temporary folder of an export. It is next to a local output, so that finished files can be renamed into place.

It holds gigabytes. SIGTERM and Ctrl-C end an export like an error, and the folder is removed. A killed process leaves
its folder behind with a free lock, and the next export in the same place removes it. On a file system without locks no
folder is removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

PREFIX = ".deepcoder-export-"
_TRIES = 10
"""Attempts to make a folder, if another export removes it as abandoned before it is locked."""


@contextmanager
def workdir(beside: Path | None) -> Iterator[Path]:
    """Make a folder next to a local output, or in the system's temporary folder."""
    parent = Path(tempfile.gettempdir()) if beside is None else beside.parent
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent)
    work, lock = _locked_folder(parent)
    try:
        with _ended_by_sigterm():
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def _sweep(parent: Path) -> None:
    """Remove the folders of killed exports."""
    for left in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # somebody else's, in use, or gone meanwhile
            lock = _lock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    for _ in range(_TRIES):
        work = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        try:
            lock = _lock(work, fcntl.LOCK_EX)
        except FileNotFoundError:
            continue
        except OSError:  # no locks here
            return work, os.open(work, os.O_RDONLY | os.O_DIRECTORY)
        if work.is_dir():
            return work, lock
        os.close(lock)
    raise OSError(f"{parent}: a folder is removed as soon as it is made there: choose another output")


def _lock(folder: Path, how: int) -> int:
    """Open and lock a folder; raises OSError if another process has locked it."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(opened, how)
    except OSError:
        os.close(opened)
        raise
    return opened


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # handlers are the main thread's
        yield
        return

    def end(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
