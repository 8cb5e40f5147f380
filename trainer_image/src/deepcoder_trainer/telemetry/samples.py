"""Every rollout to storage, behind training: one Parquet file a step.

Writing takes a thread for a moment and an upload for longer, so a queue stands between; it is bounded, and a full
queue drops nothing but waits in `close`. A file that cannot be put is logged and lost: samples explain a run, they do
not carry it.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

from deepcoder_contracts.layout import samples_key
from deepcoder_contracts.progress import TrainerPhase
from deepcoder_trainer.checkpoint.errors import StorageError
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.ports import StepReport
from deepcoder_trainer.samples import write_samples
from deepcoder_trainer.types import Group

log = logging.getLogger(__name__)

CLOSE_SECONDS = 60.0


class SampleSink:
    """Takes each step's groups; `run` is its background task."""

    def __init__(self, store: ObjectStore, stage: str, prompts: Mapping[str, str]) -> None:
        self._store = store
        self._stage = stage
        self._prompts = prompts
        self._queue: asyncio.Queue[tuple[int, tuple[Group, ...]]] = asyncio.Queue()

    def on_phase(self, phase: TrainerPhase) -> None:
        """Not of interest."""

    def on_step(self, report: StepReport) -> None:
        """Queue the step's groups."""
        self._queue.put_nowait((report.step, report.groups))

    async def run(self) -> None:
        """Write and put until cancelled."""
        while True:
            step, groups = await self._queue.get()
            try:
                await asyncio.to_thread(self._put, step, groups)
            except (StorageError, OSError) as error:
                log.error("samples of step %d are lost: %s", step, error)
            finally:
                self._queue.task_done()

    async def close(self) -> None:
        """Wait until all is put, within a bound."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._queue.join()
        except TimeoutError:
            log.error("samples of %d steps are lost: storage is too slow", self._queue.qsize())

    def _put(self, step: int, groups: tuple[Group, ...]) -> None:
        with tempfile.TemporaryDirectory(prefix="deepcoder-samples-") as folder:
            path = Path(folder) / "samples.parquet"
            write_samples(path, groups, self._prompts, step)
            self._store.put_file(samples_key(self._stage, step), path)
