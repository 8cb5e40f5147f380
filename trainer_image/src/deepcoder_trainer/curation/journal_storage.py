"""Where a journal is stored: in a local file, or in object storage, which outlives the machine.

Both give the same guarantee: whatever `append` has accepted is there after any end of the process, in whole lines. A
file is synced, and a line that a crash cut short is removed when the file is opened again. In object storage, lines are
put as pages. Each page is a whole object that is put again as it fills, under the name of one writer, so no other
process writes it. Appending blocks, so callers use a thread. OSError and StorageError are raised to the caller.
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
"""Lines of an object in storage."""
PUT_SECONDS = 0.2
"""Least time between two puts: one serves all lines that came meanwhile, and requests are paid for."""


class Line(NamedTuple):
    """A line that was appended once."""

    place: str
    """File or object, and line."""
    text: bytes


class Log(Protocol):
    """Lines that stay."""

    where: str
    """The place, for people."""

    def read(self) -> Iterator[Line]:
        """All lines that there are; called once, before anything is appended."""
        ...

    def append(self, lines: bytes) -> None:
        """Keep whole lines; they stay from when this returns."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class FileLog:
    """A file, opened by one process at a time."""

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
        """Lines of the file; a last one that is not whole is cut off."""
        end = 0
        with os.fdopen(os.dup(self._file), "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break  # cut short by a crash: it was never promised
                yield Line(f"{self.where}:{number}", line)
                end += len(line)
        os.ftruncate(self._file, end)
        os.lseek(self._file, end, os.SEEK_SET)

    def append(self, lines: bytes) -> None:
        """Write and sync."""
        with self._held:
            if self._closed:
                raise OSError(f"{self.where} is closed")
            view = memoryview(lines)
            while view:
                view = view[os.write(self._file, view) :]
            os.fsync(self._file)

    def close(self) -> None:
        """Let another process have it, when what is being written is."""
        with self._held:
            self._closed = True
            os.close(self._file)


class StoredLog:
    """Objects below a folder in storage: those of all writers are read, this one's alone are written."""

    def __init__(self, store: ObjectStore, folder: str, writer: str) -> None:
        """`writer` names who writes: no other process may have the same name, before or after."""
        self._store, self._folder, self._writer = store, folder, writer
        self.where = f"{store.uri}/{folder}"
        self._page: list[bytes] = []
        self._number = 0
        self._put_at = 0.0

    def read(self) -> Iterator[Line]:
        """Lines of all objects, in the order of their names."""
        for found in self._store.list(f"{self._folder}/"):
            content = retried(partial(self._store.get_bytes, found.key), f"reading {found.key}")
            for number, line in enumerate(content.splitlines(keepends=True), start=1):
                yield Line(f"{self._store.uri}/{found.key}:{number}", line)

    def append(self, lines: bytes) -> None:
        """Put the page that is being filled, with these lines."""
        time.sleep(max(0.0, self._put_at + PUT_SECONDS - time.monotonic()))
        self._page += lines.splitlines(keepends=True)
        key = f"{self._folder}/{self._writer}-{self._number:05d}.jsonl"
        retried(lambda: self._store.put_bytes(key, b"".join(self._page)), f"upload of {key}")
        self._put_at = time.monotonic()
        if len(self._page) >= PAGE_LINES:
            self._page, self._number = [], self._number + 1

    def close(self) -> None:
        """Nothing is open."""
