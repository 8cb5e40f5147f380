"""Objects under keys, on S3 or on a file system, behind one small protocol.

All calls block and have deadlines; asynchronous callers run them in a thread. Every put carries a SHA-256 that the
server checks, so a damaged upload is refused at once and not discovered at resume. `if_absent` is the commit primitive:
exactly one writer of a key wins, on S3 through `If-None-Match: *`, on a file system through a hard link. Credentials
come from AWS_* variables and are never part of a URI, a message or a log line.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from deepcoder_trainer.checkpoint.errors import StorageUnavailable

CHUNK = 1 << 20
"""Bytes read at a time when hashing or copying."""


@dataclass(frozen=True)
class StoredObject:
    """An object as storage knows it."""

    key: str
    """Key below the store's root."""

    size: int
    """Bytes."""

    modified_at: datetime
    """By the storage's own clock (UTC)."""

    checksum: str | None = None
    """S3's ChecksumSHA256 (base64, `…-N` for N parts); None from a listing or on a file system."""

    sha256: str | None = None
    """Of the content that was put, hexadecimal; None where nothing was put."""


class ObjectStore(Protocol):
    """A root under which objects are put, got and listed. Keys are relative to it, with `/` between segments."""

    uri: str
    """The root, `s3://bucket/prefix` or `file:///path`, without a trailing slash."""

    def put_file(self, key: str, path: Path) -> StoredObject:
        """Upload a file, replacing what was there; the answer has its SHA-256."""
        ...

    def put_bytes(self, key: str, data: bytes, *, if_absent: bool = False) -> StoredObject:
        """Put a small object. With `if_absent`: raises `ObjectExists` if another content is there already.

        The same content is no conflict: a put whose answer was lost is retried and finds its own object.
        """
        ...

    def get_bytes(self, key: str) -> bytes:
        """Content of a small object; raises `ObjectMissing`."""
        ...

    def get_range(self, key: str, start: int, size: int) -> bytes:
        """`size` bytes of an object from `start` on; raises `ObjectMissing`, `StorageUnavailable` if it has fewer."""
        ...

    def get_file(self, key: str, path: Path) -> str:
        """Download to `path` (parents are made) and return the content's SHA-256, hexadecimal."""
        ...

    def sha256(self, key: str) -> tuple[int, str]:
        """Size and SHA-256 (hexadecimal) of an object, by reading all of it."""
        ...

    def head(self, key: str) -> StoredObject | None:
        """What storage knows of an object, None if there is none."""
        ...

    def list(self, prefix: str) -> list[StoredObject]:
        """All objects whose key starts with `prefix`, in key order."""
        ...

    def delete_prefix(self, prefix: str, *, keep: frozenset[str] = frozenset()) -> int:
        """Delete all objects below `prefix` (a folder: it ends in `/`) but those whose key is in `keep`."""
        ...


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal, read in chunks."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def join_key(*parts: str) -> str:
    """Segments joined by `/`; empty ones are left out."""
    return "/".join(p.strip("/") for p in parts if p.strip("/"))


def refuse_traversal(key: str) -> str:
    """The key, if it stays below its root; raises ValueError for empty, `.` and `..` segments."""
    if any(segment in ("", ".", "..") for segment in key.rstrip("/").split("/")):
        raise ValueError(f"key {key!r} has an empty, '.' or '..' segment")
    return key


def whole(where: str, start: int, size: int, data: bytes) -> bytes:
    """What came of a range, if that is all of it; raises `StorageUnavailable`."""
    if len(data) != size:
        raise StorageUnavailable(f"{where}: {len(data)} bytes came of the {size} from {start} on")
    return data
