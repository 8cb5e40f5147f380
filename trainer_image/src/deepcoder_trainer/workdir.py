"""Working folders on the local disk, and removal of those that killed processes left behind.

The attempt's folder holds copies of checkpoints (12 bytes per parameter) and samples, the judge's a socket, a sampler's
the config and tokenizer. The commands `curate` and `evaluate` make files in theirs before they are uploaded. A process
that is killed with SIGKILL removes nothing. So each folder has a file that its process keeps locked, and the lock ends
with the process. Whenever a folder is made, folders of the same user whose lock is free are removed. A folder without
such a file is not ours and stays.
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

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()

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
    """Open and lock a file until it is closed. Return None if another process has locked or removed it."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
