"""At which points a real run is killed: what it is doing then is read off the titles of its actors and its storage.

Left to the clock alone nearly every kill would hit the start, which takes most of an attempt's time. So each point
names what the run is to be doing, which time since the attempt's first step it does so, and how long into it the kill
comes, all drawn from a seed. What it really was doing is looked at once more right before a kill that
comes later than the point.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from real_runs import RealRun

PATIENCE_STEPS = 8
"""Checkpoints that an attempt may commit before it is killed anyway: whoever needs a kind to be hit asserts it."""

STARTING, LOADING, RESUMING = "starting", "loading models", "resuming"
SAMPLING, TRAINING, PUSHING = "sampling and judging", "training", "pushing weights"
COPYING, UPLOADING, COMMITTING, EXPORTING = "copying", "uploading", "committing", "exporting"

_METHODS = {
    "__init__": LOADING,
    "machine": LOADING,
    "listen": LOADING,
    "start": LOADING,
    "download": RESUMING,
    "load": RESUMING,
    "discard": RESUMING,
    "train": TRAINING,
    "export_weights": PUSHING,
    "update_weights": PUSHING,
    "save": COPYING,
    "upload": UPLOADING,
    "save_pretrained": EXPORTING,
}


@dataclass(frozen=True)
class Point:
    """One kill."""

    doing: str
    occurrence: int
    """Which time, from 1."""
    delay: float
    """Seconds into it."""


def draw_points(seed: int, doing: Sequence[str]) -> list[Point]:
    """One for each of `doing`, in a random order; what happens once an attempt is hit the first time."""
    rng = random.Random(seed)
    points = []
    for each in rng.sample(doing, len(doing)):
        once = each in (STARTING, LOADING, RESUMING, EXPORTING)
        longest = {STARTING: 4.0, LOADING: 8.0, **dict.fromkeys((COPYING, COMMITTING, EXPORTING), 0.0)}.get(each, 0.05)
        points.append(Point(each, 1 if once else rng.randint(1, 4), rng.uniform(0, longest)))
    return points


class Watch:
    """Follows one process of a run."""

    def __init__(self, run: RealRun, process: subprocess.Popen[bytes], stage: Path) -> None:
        """`stage` is the stage's folder on this machine."""
        self._run, self._process, self._stage = run, process, stage
        self._actors: list[psutil.Process] = []
        self._looked = 0.0
        self._committed = len(self._manifests())

    def doing(self) -> str:
        """What it does now; where training goes on beside a save, the save."""
        methods = set(self._methods())
        if not methods:
            return STARTING
        doing = {_METHODS[m] for m in methods if m in _METHODS}
        if EXPORTING in doing or any(_unfinished(self._stage.glob(f"export/step-*.a{self._ordinal:03d}"))):
            return EXPORTING
        saves = self._unfinished_saves()
        if any((folder / "state.json").exists() for folder in saves):
            doing.add(COMMITTING)
        elif saves:
            doing.add(UPLOADING)
        order = (LOADING, RESUMING, COPYING, COMMITTING, UPLOADING, PUSHING, TRAINING)
        return next((each for each in order if each in doing), SAMPLING)

    def until(self, point: Point, seconds: float = 600) -> str | None:
        """Wait for a point; what the process is doing there, None if it has ended before."""
        deadline = time.monotonic() + seconds
        seen: list[object] = []
        before = now = ""
        while len(seen) < point.occurrence:
            now = self.doing()
            if now == point.doing and now in (UPLOADING, COMMITTING):
                # What a save is at comes and goes while it is looked at: each counts once.
                seen += [save for save in sorted(self._unfinished_saves()) if save not in seen][:1]
            elif now == point.doing != before:
                seen.append(None)
            before = now
            if self._process.poll() is not None:
                return None
            assert time.monotonic() < deadline, f"{point} did not come: {self._run.words()}"
            if point.doing != EXPORTING and len(self._manifests()) >= self._committed + PATIENCE_STEPS:
                break
            time.sleep(_pause(now, point))
        if point.delay == 0 and now == point.doing:
            return now  # what is over in milliseconds would be gone at a second look
        time.sleep(point.delay)
        return self.doing()

    def _methods(self) -> Iterable[str]:
        """Methods that its actors are in, by the titles that Ray gives their processes; "" for an idle one."""
        if time.monotonic() > self._looked + 0.5:
            self._actors = [p for p in self._run.processes(self._process) if _title(p).startswith("ray::")]
            self._looked = time.monotonic()
        for process in self._actors:
            name, _, method = _title(process).removeprefix("ray::").partition(".")
            if name.strip() in ("LearnerActor", "SamplerActor"):
                yield method.strip()

    @property
    def _ordinal(self) -> int:
        return max((int(path.name) for path in self._stage.glob("attempts/*")), default=0)

    def _unfinished_saves(self) -> list[Path]:
        """Of its own attempt."""
        return list(_unfinished(self._stage.glob(f"step-*.a{self._ordinal:03d}")))

    def _manifests(self) -> list[Path]:
        return list(self._stage.glob("step-*/MANIFEST.json"))


def _pause(now: str, point: Point) -> float:
    """Seconds until the next look. Starting and loading take seconds. To look 500 times a second meanwhile would take a
    fifth of a core from the run. What follows may be over in milliseconds."""
    return 0.05 if now == STARTING or (now == LOADING and point.doing != RESUMING) else 0.002


def _unfinished(folders: Iterable[Path]) -> Iterator[Path]:
    return (folder for folder in folders if not (folder / "MANIFEST.json").exists())


def _title(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline()) or ""
    return ""
