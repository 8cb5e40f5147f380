"""`deepcoder-trainer drain --wait`: tell the driver to stop, and wait until it has stopped.

A preStop hook runs this in head and learner pods, so that an evicted pod does not end before the checkpoint is written.

On the driver's machine it sends a signal to the process, which it finds through a file that the driver keeps. The
signal is not SIGTERM: a second SIGTERM means "at once", but two hooks mean no more than one. The driver locks its file
until the process ends. A killed driver leaves the file behind, and its process number may be reused by another process,
which the signal would end; the lock tells the two apart. Anyone can guess the name of the file's folder and create one
there, so a folder of another user is refused.

On another machine it sets a key in the Ray cluster's own store, which the driver reads every two seconds (an actor for
one bit would cost the pod a process). The driver increments another key there and removes it when it exits, so that
nobody waits for a driver that is gone. When a cluster is deleted, its pods end together. A head on which nothing
listens therefore has no driver left; a plain connection finds that out before Ray, which would try for a minute, is
imported. While a driver is known to live, an error of the store or the network may pass, so only one that lasts counts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from deepcoder_trainer.background import abandonable
from deepcoder_trainer.cluster import in_cluster
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.stopping import DRAIN_SIGNAL, Stop

log = logging.getLogger(__name__)
T = TypeVar("T")

POLL_SECONDS = 2.0
GONE_SECONDS = 15.0
"""A driver that has not incremented its key for this long is gone; so is a head that was not reached for this long."""
REACH_SECONDS = 3.0
"""Longest time for the head to accept a connection."""
LEAVE_SECONDS = 2.0
"""Longest time for telling the cluster that the driver exits."""
_ASKED = b"deepcoder/drain"
_BEAT = b"deepcoder/beat"


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / f"deepcoder-trainer-{os.getuid()}"


def _check_own(folder: Path) -> None:
    """Raise `BadConfig` if another user may write into the folder and could redirect a driver's file or add ids of
    other processes."""
    found = folder.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
        raise BadConfig(
            f"{folder}, the folder of running trainers, does not belong to this user alone "
            f"({stat.filemode(found.st_mode)}, owner {found.st_uid}): remove it, or set TMPDIR to a folder of your own"
        )


class Driver:
    """The driver's side: its file, and the key it watches in a cluster."""

    def __init__(self) -> None:
        self._left = threading.Event()

    def __enter__(self) -> Self:
        folder = _folder()
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        for held in _local_drivers().values():  # removes the files of killed drivers
            os.close(held)
        self._file = folder / str(os.getpid())
        _hold(self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.unlink(missing_ok=True)
        self._left.set()
        if in_cluster():
            leaving = threading.Thread(target=_take_beat_away, daemon=True)
            leaving.start()
            leaving.join(LEAVE_SECONDS)

    async def watch(self, stop: Stop, seconds: float) -> None:
        """Pass a request from another pod on to `stop`, and show that the driver is alive, until cancelled."""
        beat, failing = 0, False
        while in_cluster():
            await asyncio.sleep(POLL_SECONDS)
            beat += 1
            try:
                # In a thread of its own: the attempt's blocking work must not hold it back.
                asked = await abandonable(_beat, beat, self._left)
            except Exception as error:  # any error of Ray's store; the next poll may succeed
                if not failing:
                    log.warning("drain requests from other pods cannot be heard, because Ray's store fails: %s", error)
                failing = True
                continue
            failing = False
            if asked and not stop.requested:
                stop.request(seconds, "drain")


def _beat(number: int, left: threading.Event) -> bool:
    """Write the heartbeat `number`. Return whether a drain was requested.

    This runs in a thread that cannot be cancelled, so the driver may leave meanwhile: `left` is set before the key is
    removed, and a heartbeat that is written afterwards is removed here.
    """
    import ray
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

    if not ray.is_initialized():
        return False
    _internal_kv_put(_BEAT, str(number).encode())
    if left.is_set():
        _internal_kv_del(_BEAT)
        return False
    return _internal_kv_get(_ASKED) is not None


def _take_beat_away() -> None:
    import ray
    from ray.experimental.internal_kv import _internal_kv_del

    if ray.is_initialized():
        _internal_kv_del(_BEAT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `drain`."""
    parser.add_argument("--wait", action="store_true", help="return once the run has saved and exited")
    parser.add_argument("--timeout", type=float, default=3600.0, help="longest wait, in seconds (default 3600)")


def main(args: argparse.Namespace) -> int:
    """Request the stop, and wait. Return 0 if nothing is (left) to stop, 1 if the time is up."""
    deadline = time.monotonic() + args.timeout
    if drivers := _local_drivers():
        for pid in drivers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, DRAIN_SIGNAL)
        sys.stderr.write(f"deepcoder-trainer drain: asked to save and leave: {', '.join(map(str, drivers))}\n")
        while args.wait and (left := [pid for pid, file in drivers.items() if _locked(file)]):
            if time.monotonic() > deadline:
                sys.stderr.write(f"deepcoder-trainer drain: still running after {args.timeout:.0f} s: {left}\n")
                return 1
            time.sleep(0.5)
        return 0
    if in_cluster():
        return _drain_in_cluster(deadline, wait=args.wait)
    sys.stderr.write(f"deepcoder-trainer drain: no run of this user's is under way here (none in {_folder()})\n")
    return 0


def _drain_in_cluster(deadline: float, *, wait: bool) -> int:
    """Request the drain from a pod without the driver. An unreachable cluster has no driver left to wait for."""
    # In a thread, because a call blocks for a minute once the store is gone.
    alive = threading.Event()
    waiting = threading.Thread(target=_ask_and_wait, args=(wait, alive), daemon=True)
    if _head_accepts():
        waiting.start()
    reached = time.monotonic()
    while waiting.is_alive():
        if time.monotonic() > deadline:
            sys.stderr.write("deepcoder-trainer drain: the driver has not left in time\n")
            return 1
        waiting.join(POLL_SECONDS)
        accepts = _head_accepts()
        if accepts:
            reached = time.monotonic()
        elif accepts is False or not alive.is_set() or time.monotonic() - reached > GONE_SECONDS:
            break
    return 0


def _ask_and_wait(wait: bool, alive: threading.Event) -> None:
    """Request the drain, and wait until the driver has left. `alive` is set once a heartbeat of it is seen."""
    import ray

    ray.init(address="auto", log_to_driver=False)
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

    _answered(_internal_kv_put, _ASKED, b"1")
    seen, silent = _answered(_internal_kv_get, _BEAT), 0.0
    if seen is not None:
        alive.set()
    while wait and seen is not None and silent < GONE_SECONDS:
        time.sleep(POLL_SECONDS)
        beat = _answered(_internal_kv_get, _BEAT)
        silent = silent + POLL_SECONDS if beat == seen else 0.0
        seen = beat


def _answered(function: Callable[..., T], *args: Any) -> T:
    """Return what Ray's store answers. Raise its error once it has failed for `GONE_SECONDS`."""
    end = time.monotonic() + GONE_SECONDS
    while True:
        try:
            return function(*args)
        except Exception as error:  # any error of Ray's store
            if time.monotonic() > end:
                raise
            log.warning("Ray's store fails, and is asked again: %s", error)
        time.sleep(POLL_SECONDS)


def _head_accepts() -> bool | None:
    """Whether anything listens at RAY_ADDRESS; None if that is not known, for example because packets are lost."""
    host, _, port = os.environ["RAY_ADDRESS"].rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS):
            return True
    except ValueError:  # not host:port; Ray may understand it
        return True
    except ConnectionRefusedError:
        return False
    except OSError:
        return None


def _hold(file: Path) -> None:
    """Lock this process's file. It stays open, so the lock lasts until the process ends, however it ends."""
    while True:
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if file.exists():
            return
        os.close(lock)  # before it was locked, another process removed it as a killed driver's file


def _local_drivers() -> dict[int, int]:
    """Return the running trainers of this user: process id to open file. Files of killed trainers are removed."""
    folder = _folder()
    if not os.path.lexists(folder):
        return {}
    _check_own(folder)
    drivers: dict[int, int] = {}
    for path in sorted(path for path in folder.iterdir() if path.name.isdigit()):
        try:
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:  # the trainer has just ended
            continue
        if _locked(file):
            drivers[int(path.name)] = file
        else:
            path.unlink(missing_ok=True)  # we hold the lock: a new trainer with this id waits, then creates its own
            os.close(file)
    return drivers


def _locked(file: int) -> bool:
    """Whether the trainer that owns the file still runs. If not, the caller holds the lock until it closes `file`."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
