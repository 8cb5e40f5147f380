"""Trainer runs as whole processes, for the benchmarks that train: each ends with all that it started.

A run that takes too long is asked to stop, which saves, and is then ended with its daemons; a command that fails ends
the benchmark with the end of its log. Nothing here knows what is measured.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

STOP_SECONDS = 90.0
"""Time that a run which took too long has to save and end; the local run's drainSeconds are not waited for in full."""
_PR_SET_CHILD_SUBREAPER = 36


@contextlib.contextmanager
def work_folder(keep: Path | None, prefix: str) -> Iterator[Path]:
    """The folder to work in: the one to be kept, else one that goes."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        yield Path(folder)


class Seconds:
    """What each part has taken, over all times that it was called: with `--keep` a run may be done in pieces."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.spent: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, part: str, command: list[str], log: Path, limit: float) -> None:
        """Run a command; SystemExit with the end of its log if it fails."""
        began = time.monotonic()
        status = run_whole(command, log, limit)
        self.spent[part] = self.spent.get(part, 0.0) + time.monotonic() - began
        self._path.write_text(json.dumps(self.spent))
        if status != 0:
            tail = "\n".join(log.read_text().splitlines()[-20:])
            said = f"did not end within {limit:.0f} s" if status is None else f"ended with {status}"
            raise SystemExit(f"{' '.join(command)} {said}:\n{tail}")


def run_whole(command: list[str], log: Path, limit: float) -> int | None:
    """Exit status of a command, None if it took too long; nothing that it started outlives it.

    Ray's daemons leave the process that started them. As a subreaper this process becomes their parent then, and finds
    them among its own descendants.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    with log.open("a") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        return child.wait(limit)
    except subprocess.TimeoutExpired:
        child.terminate()  # it saves, and ends what it started
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_SECONDS)
        return None
    finally:
        left = psutil.Process().children(recursive=True)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, STOP_SECONDS)
