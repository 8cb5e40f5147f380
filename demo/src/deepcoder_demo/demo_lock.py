"""Allows one demo at a time on a cluster: a second one would delete the run that the first one follows.

The kernel releases the lock with its holder, however that ends. Fails with `AlreadyRunning`, which names the holder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class AlreadyRunning(Exception):
    """Another demo runs on the same cluster."""


def lock_file(cache: Path, kubeconfig: str | Path) -> Path:
    """The lock of the cluster that `kubeconfig` names."""
    return cache / "locks" / f"demo-{hashlib.sha256(str(kubeconfig).encode()).hexdigest()[:12]}"


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold the lock at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise AlreadyRunning(
                f"process {file.read() or 'unknown'} already runs the demo on this cluster, and a second one would "
                "delete its run. Wait until it ends, or end it"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
