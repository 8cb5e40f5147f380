"""Transfers a checkpoint's files to and from storage, several at a time, with every byte checked.

A download that does not match its entry is distinguished from one that did not arrive. The first means that the
checkpoint is damaged and an older one is needed. The second means that storage has a problem and the attempt should
fail.
"""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from deepcoder_contracts.manifest import FileEntry
from deepcoder_trainer.checkpoint.errors import (
    CheckpointDamaged,
    ChecksumMismatch,
    ObjectMissing,
    StorageUnavailable,
)
from deepcoder_trainer.checkpoint.storage import (
    TRAFFIC,
    ObjectStore,
    StoredObject,
    file_sha256,
    join_key,
    refuse_traversal,
)

PARALLEL = 4
"""Number of files transferred at a time."""

PARTIAL = ".partial"
"""Suffix of a file that is not complete yet."""

_ATTEMPTS = 3
_BACKOFF_SECONDS = 1.0
_LOCK = ".lock"

log = logging.getLogger(__name__)
T = TypeVar("T")


def upload_files(store: ObjectStore, prefix: str, root: Path, files: Sequence[Path]) -> list[FileEntry]:
    """Upload files below `prefix`, under their paths relative to `root`. Return their manifest entries."""

    def put(path: Path) -> FileEntry:
        relative = path.relative_to(root).as_posix()
        stored = retried(lambda: store.put_file(join_key(prefix, relative), path), f"upload of {relative}")
        if stored.size != path.stat().st_size:
            raise ChecksumMismatch(f"{store.uri}/{prefix}/{relative} has {stored.size} bytes after its upload")
        assert stored.sha256 is not None, "what was put has one"
        TRAFFIC.add(stored.size)
        return FileEntry(path=relative, size=stored.size, sha256=stored.sha256, s3_checksum=stored.checksum)

    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(put, files))


def download_files(
    store: ObjectStore, prefix: str, directory: Path, entries: Sequence[FileEntry], *, check_present: bool = False
) -> None:
    """Download files below `prefix` to `directory`. Raises `CheckpointDamaged` for a missing or different file.

    Processes on one machine may download to the same folder: the first one downloads a file, the others find it. The
    lock is on the file, because ranks mostly read different files of a checkpoint and must not wait for each other. If
    the folder may hold other files, `check_present` hashes existing files and downloads those that differ again.
    """

    def get(entry: FileEntry) -> None:
        try:
            target = directory / refuse_traversal(entry.path)
        except ValueError as e:
            raise CheckpointDamaged(str(e)) from e
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = target.with_name(f".{target.name}{_LOCK}")
        with _held(lock, target):
            if not target.exists() or (check_present and not _is(target, entry)):
                bring(entry, target)
            # Only now: after a failure the next process must wait for the same lock as those that wait already.
            lock.unlink(missing_ok=True)

    def bring(entry: FileEntry, target: Path) -> None:
        partial = target.with_name(target.name + PARTIAL)
        key = join_key(prefix, entry.path)
        try:
            sha256 = retried(lambda: store.get_file(key, partial), f"download of {entry.path}")
        except ObjectMissing as e:
            raise CheckpointDamaged(f"{entry.path} is missing") from e
        if (size := partial.stat().st_size) != entry.size:
            raise CheckpointDamaged(f"{entry.path} has {size} bytes, its manifest says {entry.size}")
        if sha256 != entry.sha256:
            raise CheckpointDamaged(f"{entry.path} has sha256 {sha256[:12]}…, its manifest says {entry.sha256[:12]}…")
        partial.rename(target)
        TRAFFIC.add(size)

    several(get, entries)


def several(fetch: Callable[[T], object], wanted: Iterable[T]) -> None:
    """Fetch all, `PARALLEL` at a time. Raises the first error, after which no further fetch starts.

    The threads are daemons: a caller may give up waiting for a model, and the threads of a pool would then keep the
    process from ending.
    """
    left, taking = iter(wanted), threading.Lock()
    failures: list[BaseException] = []

    def work() -> None:
        while not failures:
            with taking:
                each = next(left, left)
            if each is left:
                return
            try:
                fetch(each)  # type: ignore[arg-type]  # not the iterator itself
            except BaseException as error:  # every error is passed to the caller
                failures.append(error)

    threads = [threading.Thread(target=work, name="fetch", daemon=True) for _ in range(PARALLEL)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _is(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == entry.size and file_sha256(path) == entry.sha256


def retried(call: Callable[[], T], what: str) -> T:
    """Return the call's result. Retry transient failures, up to `_ATTEMPTS` tries in total."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return call()
        except (StorageUnavailable, ChecksumMismatch) as e:
            log.warning("%s failed (try %d of %d): %s", what, attempt, _ATTEMPTS, e)
            time.sleep(_BACKOFF_SECONDS * 2**attempt)
    return call()


def put_new(store: ObjectStore, key: str, data: bytes) -> StoredObject:
    """Put an object that must not exist yet, with retries: giving up on a manifest means uploading all files again.

    A put whose answer was lost finds its own object. Raises `ObjectExists` if the key has another content.
    """
    return retried(lambda: store.put_bytes(key, data, if_absent=True), f"upload of {key}")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Create a folder and lock it for this process. The lock ends with its holder, even if that is killed."""
    directory.mkdir(parents=True, exist_ok=True)
    with _held(directory / _LOCK, directory):
        yield


@contextmanager
def _held(lock: Path, wanted: Path) -> Iterator[None]:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting until another process has fetched what it needs into %s", wanted)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
