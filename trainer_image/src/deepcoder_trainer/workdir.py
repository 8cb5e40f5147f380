"""Folders on this machine's disk that an attempt's processes work in, and what killed ones have left there.

Copies of checkpoints (12 bytes a parameter) and samples lie in the attempt's own, a socket in the judge's, config and
tokenizer in a sampler's; and a process that is killed with SIGKILL removes nothing. So each folder has a file that its
process holds locked; the lock ends with the process, however that ends. Whoever of the same user makes a folder next
removes those whose lock nobody holds. A folder without such a file stays: it may be anybody's.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

PREFIX = "deepcoder-"
LOCK = "attempt.lock"
_MOST_TRIES = 10


class Workdir:
    """A folder of this process's."""

    def __init__(self, purpose: str = "trainer") -> None:
        """`purpose` is a word for its name."""
        remove_left(Path(tempfile.gettempdir()))
        self.path, self._lock = _make(f"{PREFIX}{purpose}-")

    def remove(self) -> None:
        """With all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_left(root: Path) -> None:
    """Remove what killed processes of this user left below `root`."""
    for lock in root.glob(f"{PREFIX}*/{LOCK}"):
        try:
            if lock.stat().st_uid != os.getuid() or (held := _hold(lock)) is None:
                continue
        except OSError:  # somebody else removes it, or it is of a file system without locks
            continue
        try:
            log.info("%s is removed: the process that worked in it was killed", lock.parent)
            shutil.rmtree(lock.parent, ignore_errors=True)
        finally:
            os.close(held)


def _make(prefix: str) -> tuple[Path, int]:
    for _ in range(_MOST_TRIES):
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        (folder / LOCK).touch(0o600)
        held = _hold(folder / LOCK)
        if held is not None and (folder / LOCK).exists():
            return folder, held
        if held is not None:  # another process, which starts right now, took it for a killed one's in between
            os.close(held)
    raise OSError(f"no folder of our own could be made in {tempfile.gettempdir()} in {_MOST_TRIES} tries")


def _hold(lock: Path) -> int | None:
    """The file, locked until it is closed; None where another process has it."""
    descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
