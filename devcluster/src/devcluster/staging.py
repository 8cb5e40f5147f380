"""A place for incomplete builds: one folder of the cache that nothing else uses.

The cache may be a directory with other people's files ($HOME, say). So what a killed build left is recognised by its
place and prefix, and nothing else is ever removed. Fails with OSError, as when the disk is full.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_FOLDER = "devcluster-unfinished"
_PREFIX = "unfinished-"


@contextlib.contextmanager
def making(cache: Path, name: str) -> Iterator[Path]:
    """A path that does not exist yet, for a file or directory to rename once complete; removed if it is not renamed."""
    folder = cache / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{_PREFIX}{name}.{os.getpid()}"
    _remove(place)
    try:
        yield place
    finally:
        _remove(place)


def sweep(cache: Path) -> None:
    """Remove what killed builds left. Call it only while no other build runs."""
    for left in (cache / _FOLDER).glob(f"{_PREFIX}*"):
        _remove(left)


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
