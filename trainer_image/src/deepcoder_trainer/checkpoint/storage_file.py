"""A directory as an object store, for use without S3, with the same commit semantics.

Objects are written to a temporary file and renamed, so that a reader never sees a partial one. A conditional put is a
hard link, which exactly one writer can create. An object is flushed to disk before it gets its name: a committed
checkpoint replaces older ones, and a machine that loses power must not lose both. A crash can leave `.tmp` files
behind; listings hide them, and they go with the folder that they are in.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from deepcoder_trainer.checkpoint.errors import (
    ChecksumMismatch,
    ObjectExists,
    ObjectMissing,
    StorageDenied,
    StorageUnavailable,
)
from deepcoder_trainer.checkpoint.storage import StoredObject, file_sha256, refuse_traversal, whole

_TEMPORARY = ".tmp"


class FileStore:
    """An `ObjectStore` below a directory, which is created by the first write."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.uri = f"file://{root.as_posix().rstrip('/')}"

    def put_file(self, key: str, path: Path) -> StoredObject:
        """See `ObjectStore`."""
        with self._writing(key) as temporary:
            shutil.copyfile(path, temporary)
            if (sha256 := file_sha256(path)) != file_sha256(temporary):
                raise ChecksumMismatch(f"{self.uri}/{key}: the copy differs from {path} (sha256 {sha256})")
            _flush(temporary)
            temporary.replace(self._path(key))
        return replace(self._stat(key), sha256=sha256)

    def put_bytes(self, key: str, data: bytes, *, if_absent: bool = False) -> StoredObject:
        """See `ObjectStore`."""
        with self._writing(key) as temporary:
            temporary.write_bytes(data)
            _flush(temporary)
            if not if_absent:
                temporary.replace(self._path(key))
            else:
                try:
                    os.link(temporary, self._path(key))
                except FileExistsError as e:
                    if self.get_bytes(key) != data:
                        raise ObjectExists(f"{self.uri}/{key} exists already") from e
        return self._stat(key)

    def get_bytes(self, key: str) -> bytes:
        """See `ObjectStore`."""
        with self._translated(key):
            return self._path(key).read_bytes()

    def get_range(self, key: str, start: int, size: int) -> bytes:
        """See `ObjectStore`."""
        with self._translated(key), self._path(key).open("rb") as f:
            f.seek(start)
            return whole(f"{self.uri}/{key}", start, size, f.read(size))

    def get_file(self, key: str, path: Path) -> str:
        """See `ObjectStore`."""
        refuse_traversal(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._translated(key):
            shutil.copyfile(self._path(key), path)
        return file_sha256(path)

    def sha256(self, key: str) -> tuple[int, str]:
        """See `ObjectStore`."""
        with self._translated(key), self._path(key).open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
            return f.tell(), digest

    def head(self, key: str) -> StoredObject | None:
        """See `ObjectStore`."""
        return self._stat(key) if self._path(key).is_file() else None

    def _found(self, prefix: str, *, unfinished: bool) -> list[StoredObject]:
        folder = self._root / prefix.rpartition("/")[0]
        found = []
        for path in folder.rglob("*"):
            key = path.relative_to(self._root).as_posix()
            if path.is_file() and (path.suffix == _TEMPORARY) == unfinished and key.startswith(prefix):
                with suppress(ObjectMissing):  # a write has ended meanwhile
                    found.append(self._stat(key))
        return sorted(found, key=lambda o: o.key)

    def unfinished(self, prefix: str) -> list[StoredObject]:
        """See `ObjectStore`."""
        return self._found(prefix, unfinished=True)

    def list(self, prefix: str) -> list[StoredObject]:
        """See `ObjectStore`."""
        return self._found(prefix, unfinished=False)

    def delete_prefix(self, prefix: str, *, keep: frozenset[str] = frozenset()) -> int:
        """See `ObjectStore`."""
        refuse_traversal(prefix)
        below = prefix.rstrip("/") + "/"
        doomed = [o.key for o in self.list(below) if o.key not in keep]
        with self._translated(prefix):
            for key in [*doomed, *(o.key for o in self.unfinished(below))]:
                self._path(key).unlink(missing_ok=True)
        # S3 has no empty folders, so remove them here, deepest first; rmdir fails for non-empty ones.
        folder = self._root / prefix
        for path in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
            with suppress(OSError):
                path.rmdir()
        with suppress(OSError):
            folder.rmdir()
        return len(doomed)

    def _path(self, key: str) -> Path:
        return self._root / refuse_traversal(key)

    def _stat(self, key: str) -> StoredObject:
        with self._translated(key):
            stat = self._path(key).stat()
        return StoredObject(key, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))

    @contextmanager
    def _writing(self, key: str) -> Iterator[Path]:
        """Yield a temporary file in the object's folder, and remove it afterwards unless it was renamed."""
        target = self._path(key)
        with self._translated(key):
            _make(target.parent)
            handle, name = tempfile.mkstemp(suffix=_TEMPORARY, dir=target.parent)
            os.close(handle)
            try:
                yield Path(name)
            finally:
                Path(name).unlink(missing_ok=True)
            _flush_entries(target.parent)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as e:
            raise ObjectMissing(f"{self.uri}/{key} does not exist") from e
        except PermissionError as e:
            raise StorageDenied(f"{self.uri}/{key}: {e.strerror}") from e
        except OSError as e:
            raise StorageUnavailable(f"{self.uri}/{key}: {e.strerror or e}") from e


def _make(folder: Path) -> None:
    """Create a folder and its parents, and flush each new entry to disk, so that its objects survive a power loss."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush_entries(folder.parent)


def _flush_entries(folder: Path) -> None:
    with suppress(OSError):  # some file systems cannot flush folders
        _flush(folder)


def _flush(path: Path) -> None:
    """Wait until a file's content or a folder's entries are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
