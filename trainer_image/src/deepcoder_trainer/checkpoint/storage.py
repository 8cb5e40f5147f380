"""Objects under keys, on S3 or on a file system, behind one small protocol.

All calls block and have deadlines; asynchronous callers run them in a thread. Every put carries a SHA-256 that the
server checks, so a damaged upload is refused at once and not discovered at resume. `if_absent` is the commit primitive:
exactly one writer of a key wins, on S3 through `If-None-Match: *`, on a file system through a hard link. Credentials
come from AWS_* variables and are never part of a URI, a message or a log line.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from deepcoder_trainer.checkpoint.errors import StorageUnavailable

CHUNK = 1 << 20
"""Bytes read at a time when hashing or copying."""


class Traffic:
    """Counts the bytes that this process has transferred, so that a slow transfer can be told from one that hangs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.bytes = 0

    def add(self, size: int) -> None:
        """Count bytes as transferred. A file may count more than once: only whether the number grows has a meaning."""
        with self._lock:
            self.bytes += size


TRAFFIC = Traffic()
"""All transfers of this process, in either direction."""


@dataclass(frozen=True)
class StoredObject:
    """The metadata of a stored object."""

    key: str
    """Key below the store's root."""

    size: int
    """Size in bytes."""

    modified_at: datetime
    """Time of the last write by the storage's own clock (UTC)."""

    checksum: str | None = None
    """S3's ChecksumSHA256 (base64, `…-N` for N parts); None from a listing or on a file system."""

    sha256: str | None = None
    """SHA-256 of the content, hexadecimal, in the result of `put_file`; elsewhere it may be None."""


class ObjectStore(Protocol):
    """Objects below a root. Keys are relative to the root, with `/` between segments."""

    uri: str
    """The root, `s3://bucket/prefix` or `file:///path`, without a trailing slash."""

    def put_file(self, key: str, path: Path) -> StoredObject:
        """Upload a file, replacing an existing object. The result has the SHA-256."""
        ...

    def put_bytes(self, key: str, data: bytes, *, if_absent: bool = False) -> StoredObject:
        """Put a small object. With `if_absent`, raises `ObjectExists` if the key has another content.

        The same content is not a conflict: a put whose answer was lost is retried and finds its own object.
        """
        ...

    def get_bytes(self, key: str) -> bytes:
        """Return the content of a small object. Raises `ObjectMissing`."""
        ...

    def get_range(self, key: str, start: int, size: int) -> bytes:
        """Return `size` bytes from offset `start`. Raises `ObjectMissing`, and `StorageUnavailable` for fewer bytes."""
        ...

    def get_file(self, key: str, path: Path) -> str:
        """Download to `path`, creating its parents. Return the content's SHA-256, hexadecimal."""
        ...

    def sha256(self, key: str) -> tuple[int, str]:
        """Read a whole object. Return its size and SHA-256 (hexadecimal)."""
        ...

    def head(self, key: str) -> StoredObject | None:
        """Return the metadata of an object, or None if it does not exist."""
        ...

    def unfinished(self, prefix: str) -> list[StoredObject]:
        """Return what writes that never ended have left below the folder `prefix` (ends in `/`), which `list` hides."""
        ...

    def list(self, prefix: str) -> list[StoredObject]:
        """Return all objects whose key starts with `prefix`, in key order."""
        ...

    def delete_prefix(self, prefix: str, *, keep: frozenset[str] = frozenset()) -> int:
        """Delete all objects below the folder `prefix` (ends in `/`) except the keys in `keep`. Return their number.

        What is unfinished goes as well.
        """
        ...


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal, reading it in chunks."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def join_key(*parts: str) -> str:
    """Join segments by `/`, leaving out empty ones."""
    return "/".join(p.strip("/") for p in parts if p.strip("/"))


def refuse_traversal(key: str) -> str:
    """Return the key if it stays below its root. Raises ValueError for empty, `.` and `..` segments."""
    if any(segment in ("", ".", "..") for segment in key.rstrip("/").split("/")):
        raise ValueError(f"key {key!r} has an empty, '.' or '..' segment")
    return key


def whole(where: str, start: int, size: int, data: bytes) -> bytes:
    """Return the data of a range if it is complete. Raises `StorageUnavailable` otherwise."""
    if len(data) != size:
        raise StorageUnavailable(f"{where}: {len(data)} bytes came of the {size} from {start} on")
    return data
