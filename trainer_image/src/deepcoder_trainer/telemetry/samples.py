"""Stores every rollout in the background: one Parquet file per step, with the draws that were dropped for its slots.

    on_step ──► in memory ──► a file on this machine's disk ──► storage, in order; what cannot be put waits and is
    dropped ──►                                                 tried again with whatever comes next

So storage that is slow or temporarily unavailable costs disk space, but no samples. Samples are lost only if the
waiting files exceed their share of the disk, if the disk is slower than training for `MAX_STEPS`, or if storage has not
accepted them by the end of the attempt; the loss is logged and counted (`samples_lost`). Samples explain a run but are
not needed to continue it, so no error of storage or disk ends training. Only one put runs at a time. A caller may stop
waiting for it, but the put continues, because an upload in a thread cannot be cancelled.

A dropped draw belongs to the step that trains its slot. Dropped draws for slots that are not trained yet are in
`ahead-a003.parquet`, as of the last flush, which happens before each checkpoint and at the end. The next attempt
continues from the finished groups and does not repeat their draws.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from deepcoder_contracts.layout import samples_ahead_key, samples_key
from deepcoder_contracts.progress import TrainerPhase
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.protocols import StepReport
from deepcoder_trainer.samples import write_samples
from deepcoder_trainer.types import Batch, Group

log = logging.getLogger(__name__)

MAX_STEPS = 8
"""Largest number of steps that wait in memory for the disk."""
DISK_SHARE = 0.25
"""Share of the disk space that is free at the start, for files that wait for storage."""
FLUSH_SECONDS = 60.0
"""Longest wait for storage at a checkpoint and at the end."""


@dataclass(frozen=True)
class _Rows:
    """The content of one file."""

    key: str
    step: int
    groups: tuple[Group, ...]
    dropped: tuple[Group, ...]

    @property
    def samples(self) -> int:
        return sum(len(group.samples) for group in self.groups + self.dropped)


@dataclass(frozen=True)
class _File:
    """A file that waits for storage."""

    key: str
    path: Path
    samples: int
    bytes: int


class SampleSink:
    """An observer that stores each step's groups. `run` is its background task."""

    def __init__(
        self,
        store: ObjectStore,
        stage: str,
        ordinal: int,
        prompts: Mapping[str, str],
        folder: Path,
        most_bytes: int | None = None,
    ) -> None:
        """Local `folder` holds waiting files of at most `most_bytes`, by default `DISK_SHARE` of the free space."""
        self._store = store
        self._stage = stage
        self._ahead_key = samples_ahead_key(stage, ordinal)
        self._prompts = prompts
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._most_bytes = int(shutil.disk_usage(folder).free * DISK_SHARE) if most_bytes is None else most_bytes
        self._arrived: asyncio.Queue[_Rows] = asyncio.Queue(MAX_STEPS)
        self._in_memory: list[_Rows] = []
        """Rows that are not in a file yet."""
        self._dropped: dict[int, list[Group]] = {}
        """Group id of a slot that is not trained yet to the draws that were dropped from it."""
        self._step = 0
        self._ahead: tuple[Group, ...] = ()
        """The dropped draws in the newest version of the `ahead` file."""
        self._files: deque[_File] = deque()
        self._numbers = count(1)
        self._written = asyncio.Event()
        self._putting: asyncio.Task[None] | None = None
        self.lost = 0
        """Number of samples that will not be stored."""

    @property
    def waiting_bytes(self) -> int:
        """Size in bytes of the files that wait for storage."""
        return sum(file.bytes for file in list(self._files))

    def on_phase(self, phase: TrainerPhase) -> None:
        """Ignored."""

    def on_step(self, report: StepReport) -> None:
        """Queue the step's groups, and the draws that were dropped from their slots."""
        if report.groups:
            self._take(report.step, report.groups)
            for group in report.groups:
                self._dropped.pop(group.group_id, None)

    def dropped(self, group: Group) -> None:
        """Record a draw that is not trained because its slot is redrawn."""
        self._dropped.setdefault(group.group_id, []).append(group)

    def keep(self, batch: Batch) -> None:
        """Queue a batch that is not trained because verdicts are missing. Training it later replaces its file."""
        self._take(batch.step, batch.groups)

    async def run(self) -> None:
        """Write files and upload them until cancelled."""
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._write_all())
                both.create_task(self._put_all())
        finally:
            if self._putting is not None:
                self._putting.cancel()

    async def flush(self) -> None:
        """Try once, within `FLUSH_SECONDS`, to upload everything. Files that storage does not accept wait."""
        self._take_ahead()
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await self._arrived.join()
                await self._put_files()
        except TimeoutError:
            log.error(
                "samples wait for storage, which is slow: %d files, %d bytes", len(self._files), self.waiting_bytes
            )

    def give_up(self) -> None:
        """Count everything that waits as lost, because the attempt is over."""
        waiting = {file.key: file.samples for file in self._files}
        waiting |= {rows.key: rows.samples for rows in self._in_memory}  # newer rows replace those of the same key
        ahead = {id(group) for group in self._ahead}
        untold = sum(len(g.samples) for draws in self._dropped.values() for g in draws if id(g) not in ahead)
        if samples := sum(waiting.values()) + untold:
            self._lose(samples, f"storage has not taken {len(waiting)} files by the attempt's end")

    def _take(self, step: int, groups: tuple[Group, ...]) -> None:
        self._step = max(self._step, step)
        dropped = [draw for group in groups for draw in self._dropped.get(group.group_id, ())]
        self._queue(_Rows(samples_key(self._stage, step), step, groups, tuple(dropped)))

    def _take_ahead(self) -> None:
        """Queue the dropped draws of slots that are not trained yet, also none, to replace an earlier `ahead` file."""
        dropped = tuple(draw for draws in self._dropped.values() for draw in draws)
        if dropped or self._ahead:
            self._ahead = dropped
            self._queue(_Rows(self._ahead_key, self._step + 1, (), dropped))

    def _queue(self, rows: _Rows) -> None:
        try:
            self._arrived.put_nowait(rows)
            self._in_memory.append(rows)
        except asyncio.QueueFull:
            self._lose(rows.samples, f"the disk below {self._folder} is slower than training")

    async def _write_all(self) -> None:
        while True:
            rows = await self._arrived.get()
            await self._write(rows)
            self._in_memory.remove(rows)
            self._arrived.task_done()
            self._written.set()

    async def _put_all(self) -> None:
        """Upload files in a separate task, so that a put that hangs until its deadline does not delay writing."""
        while True:
            await self._written.wait()
            self._written.clear()
            await self._put_files()

    async def _write(self, rows: _Rows) -> None:
        path = self._folder / f"{next(self._numbers):06d}.parquet"
        try:
            await asyncio.to_thread(write_samples, path, rows.groups, self._prompts, rows.step, dropped=rows.dropped)
            size = path.stat().st_size
            if self.waiting_bytes + size <= self._most_bytes:
                self._files.append(_File(rows.key, path, rows.samples, size))
                return
            problem = f"files that wait for storage have {self.waiting_bytes} of {self._most_bytes} bytes on this disk"
        except Exception as error:  # no error here may end the run
            problem = f"{rows.key} cannot be written: {error}"
        _remove(path)
        self._lose(rows.samples, problem)

    async def _put_files(self) -> None:
        """Upload the waiting files, after an upload that is already running."""
        while self._putting is not None and not self._putting.done():
            await asyncio.shield(self._putting)
        self._putting = asyncio.create_task(self._put_in_order())
        await asyncio.shield(self._putting)

    async def _put_in_order(self) -> None:
        """Upload files, oldest first, until storage refuses one."""
        while self._files:
            file = self._files[0]
            try:
                await asyncio.to_thread(self._store.put_file, file.key, file.path)
            except Exception as error:  # no error here may end the run
                if file.path.exists():
                    log.warning("%s waits, the next step tries again: %s", file.key, error)
                    return
                self._lose(file.samples, f"{file.path} is gone from this machine's disk")
            self._files.popleft()
            _remove(file.path)

    def _lose(self, samples: int, problem: str) -> None:
        self.lost += samples
        log.error("%d samples are lost (%d so far): %s", samples, self.lost, problem)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be removed: %s", path, error)
