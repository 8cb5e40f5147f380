"""Where a journal is stored: in a local file, or in object storage, which outlives the machine.

Both give the same guarantee: when `append` has returned, its lines survive any end of the process. A file is synced,
and a line that a crash cut short is removed when the file is opened again. In object storage, lines are stored in
pages. Each page is an object that is put again as it fills, under the name of one writer, so no other process writes
it. Appending blocks, so callers use a thread. OSError and StorageError are raised to the caller.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.checkpoint.transfer import retried
from deepcoder_trainer.errors import BadConfig

PAGE_LINES = 1000
"""Lines per object in storage."""
PUT_SECONDS = 0.2
"""Shortest time between two puts. Requests cost money, and one put stores all lines that came meanwhile."""


class Line(NamedTuple):
    """A stored line."""

    place: str
    """File or object, and line number, for messages."""
    text: bytes


class Log(Protocol):
    """A durable sequence of lines."""

    where: str
    """The location, for messages."""

    def read(self) -> Iterator[Line]:
        """Yield all lines. Called once, before anything is appended."""
        ...

    def append(self, lines: bytes) -> None:
        """Store complete lines. They are durable when this returns."""
        ...

    def close(self) -> None:
        """Release the log."""
        ...


class FileLog:
    """A log in a local file, which is locked: only one process at a time can open it. Raises BadConfig otherwise."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.where = str(path)
        self._held, self._closed = threading.Lock(), False
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise BadConfig(
                f"{path} is in use by another curation: wait for it, or give another --output-dir"
            ) from None

    def read(self) -> Iterator[Line]:
        """Yield the lines of the file. An incomplete last line is removed from it."""
        end = 0
        with os.fdopen(os.dup(self._file), "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break  # cut short by a crash, before `append` returned
                yield Line(f"{self.where}:{number}", line)
                end += len(line)
        os.ftruncate(self._file, end)
        os.lseek(self._file, end, os.SEEK_SET)

    def append(self, lines: bytes) -> None:
        """Write the lines and sync the file. If that fails, none of them is in it."""
        with self._held:
            if self._closed:
                raise OSError(f"{self.where} is closed")
            view, end = memoryview(lines), os.lseek(self._file, 0, os.SEEK_CUR)
            try:
                while view:
                    view = view[os.write(self._file, view) :]
                os.fsync(self._file)
            except OSError:  # a full disk takes half a line, which the next one must not be joined to
                os.ftruncate(self._file, end)
                os.lseek(self._file, end, os.SEEK_SET)
                raise

    def close(self) -> None:
        """Close the file after a write in progress, and release its lock."""
        with self._held:
            self._closed = True
            os.close(self._file)


class StoredLog:
    """A log in objects below a folder in storage. It reads the objects of all writers, and writes only its own."""

    def __init__(self, store: ObjectStore, folder: str, writer: str) -> None:
        """`writer` is a name that no other process uses, before or after."""
        self._store, self._folder, self._writer = store, folder, writer
        self.where = f"{store.uri}/{folder}"
        self._page: list[bytes] = []
        self._number = 0
        self._put_at = 0.0

    def read(self) -> Iterator[Line]:
        """Yield the lines of all objects, in the order of their names."""
        for found in self._store.list(f"{self._folder}/"):
            content = retried(partial(self._store.get_bytes, found.key), f"reading {found.key}")
            for number, line in enumerate(content.splitlines(keepends=True), start=1):
                yield Line(f"{self._store.uri}/{found.key}:{number}", line)

    def append(self, lines: bytes) -> None:
        """Add the lines to the current page, and put it."""
        time.sleep(max(0.0, self._put_at + PUT_SECONDS - time.monotonic()))
        self._page += lines.splitlines(keepends=True)
        key = f"{self._folder}/{self._writer}-{self._number:05d}.jsonl"
        retried(lambda: self._store.put_bytes(key, b"".join(self._page)), f"upload of {key}")
        self._put_at = time.monotonic()
        if len(self._page) >= PAGE_LINES:
            self._page, self._number = [], self._number + 1

    def close(self) -> None:
        """Do nothing."""
