"""`deepcoder-trainer drain --wait`: ask the driver to stop, and wait until it has.

A preStop hook runs it in head and learner pods, so that a pod that is evicted does not end before the checkpoint is
written. On the driver's machine it is a signal to the process, found by a file that the driver keeps while it lives.
On another one it is a key in the Ray cluster's own store, which the driver looks at every two seconds: an actor for
one bit would cost every pod a process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from deepcoder_trainer.cluster import in_cluster
from deepcoder_trainer.stopping import Stop

POLL_SECONDS = 2.0
_ASKED = b"deepcoder/drain"
_DONE = b"deepcoder/done"


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / f"deepcoder-trainer-{os.getuid()}"


class Driver:
    """The driver's side: its file, and the key it watches in a cluster."""

    def __enter__(self) -> Self:
        _folder().mkdir(mode=0o700, exist_ok=True)
        self._file = _folder() / str(os.getpid())
        self._file.touch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.unlink(missing_ok=True)

    async def watch(self, stop: Stop, seconds: float) -> None:
        """Pass a wish from another pod on to `stop`."""
        if not in_cluster():
            return
        while not stop.requested:
            await asyncio.sleep(POLL_SECONDS)
            if await asyncio.to_thread(_asked_in_cluster):
                stop.request(seconds, "drain")

    async def done(self) -> None:
        """Tell other pods that they may go."""
        if in_cluster():
            await asyncio.to_thread(_tell_done)


def _asked_in_cluster() -> bool:
    import ray
    from ray.experimental.internal_kv import _internal_kv_get

    return ray.is_initialized() and _internal_kv_get(_ASKED) is not None


def _tell_done() -> None:
    import ray
    from ray.experimental.internal_kv import _internal_kv_put

    if ray.is_initialized():
        _internal_kv_put(_DONE, b"1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `drain`."""
    parser.add_argument("--wait", action="store_true", help="return when the run has saved and left")
    parser.add_argument("--timeout", type=float, default=3600.0, help="longest wait in seconds")


def main(args: argparse.Namespace) -> int:
    """Ask, and wait. 0 when there is nothing (left) to stop, 1 when the time was over."""
    deadline = time.monotonic() + args.timeout
    drivers = [pid for pid in _local_drivers() if _signal(pid)]
    if drivers:
        while args.wait and any(_alive(pid) for pid in drivers):
            if time.monotonic() > deadline:
                sys.stderr.write(f"deepcoder-trainer drain: still running after {args.timeout:.0f} s: {drivers}\n")
                return 1
            time.sleep(0.5)
        return 0
    return _drain_in_cluster(deadline, wait=args.wait) if in_cluster() else 0


def _drain_in_cluster(deadline: float, *, wait: bool) -> int:
    import ray
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

    ray.init(address="auto", log_to_driver=False)
    _internal_kv_put(_ASKED, b"1")
    while wait and _internal_kv_get(_DONE) is None:
        if time.monotonic() > deadline:
            return 1
        time.sleep(POLL_SECONDS)
    return 0


def _local_drivers() -> list[int]:
    folder = _folder()
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def _signal(pid: int) -> bool:
    if not _alive(pid):
        return False
    os.kill(pid, signal.SIGTERM)
    return True


def _alive(pid: int) -> bool:
    """Whether that process is still a trainer; its number may have been given to another."""
    try:
        return b"deepcoder" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
