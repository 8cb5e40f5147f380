"""Every rollout to storage, behind training: one Parquet file a step.

Writing takes a thread for a moment and an upload for longer, so a queue stands between. It holds `MAX_STEPS` at most,
since groups are large: when storage is slower than training for so long, the newest step's are logged and lost, as
those of a file that cannot be put. Samples explain a run, they do not carry it.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

from deepcoder_contracts.layout import samples_key
from deepcoder_contracts.progress import TrainerPhase
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.ports import StepReport
from deepcoder_trainer.samples import write_samples
from deepcoder_trainer.types import Batch

log = logging.getLogger(__name__)

MAX_STEPS = 8
"""Steps that wait to be written."""
FLUSH_SECONDS = 60.0
"""Longest wait for them."""


class SampleSink:
    """Takes each step's groups; `run` is its background task."""

    def __init__(self, store: ObjectStore, stage: str, prompts: Mapping[str, str]) -> None:
        self._store = store
        self._stage = stage
        self._prompts = prompts
        self._queue: asyncio.Queue[Batch] = asyncio.Queue(MAX_STEPS)

    def on_phase(self, phase: TrainerPhase) -> None:
        """Not of interest."""

    def on_step(self, report: StepReport) -> None:
        """Queue the step's groups."""
        if report.groups:
            self.keep(Batch(report.step, report.groups))

    def keep(self, batch: Batch) -> None:
        """Queue a batch, one that is not trained for want of verdicts as well; when it is, that takes its place."""
        try:
            self._queue.put_nowait(batch)
        except asyncio.QueueFull:
            log.error("samples of step %d are lost: storage is slower than training", batch.step)

    async def run(self) -> None:
        """Write and put until cancelled."""
        while True:
            batch = await self._queue.get()
            try:
                await asyncio.to_thread(self._put, batch)
            except Exception as error:  # whatever it is, it is not worth the run
                log.error("samples of step %d are lost: %s", batch.step, error)
            finally:
                self._queue.task_done()

    async def flush(self) -> None:
        """Wait until all is put, within a bound."""
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await self._queue.join()
        except TimeoutError:
            log.error("samples of %d steps are not stored yet: storage is too slow", self._queue.qsize())

    def _put(self, batch: Batch) -> None:
        with tempfile.TemporaryDirectory(prefix="deepcoder-samples-") as folder:
            path = Path(folder) / "samples.parquet"
            write_samples(path, batch.groups, self._prompts, batch.step)
            self._store.put_file(samples_key(self._stage, batch.step), path)
