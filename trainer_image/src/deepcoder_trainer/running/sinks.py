"""The sinks that an attempt reports to: operator, Prometheus, metrics.jsonl, samples, trackers.

A failing sink loses reports, but never fails the attempt. Metrics and samples that could not be stored are
retried with the next checkpoint. If a stop leaves no time for both, the checkpoint comes first.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from deepcoder_contracts.layout import METRICS, metrics_key
from deepcoder_contracts.progress import CheckpointSummary
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint.committed import CommittedCheckpoint
from deepcoder_trainer.checkpoint.errors import StorageError
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.protocols import Observer
from deepcoder_trainer.runtime_info import RuntimeInfo
from deepcoder_trainer.stopping import Moment, Stop, StopReached
from deepcoder_trainer.telemetry.metrics import JsonLines
from deepcoder_trainer.telemetry.observers import Observers
from deepcoder_trainer.telemetry.progress import Progress
from deepcoder_trainer.telemetry.prometheus import Prometheus
from deepcoder_trainer.telemetry.samples import SampleSink

log = logging.getLogger(__name__)


class Sinks:
    """All sinks of one attempt."""

    def __init__(
        self,
        config: StageConfig,
        stop: Stop,
        store: ObjectStore,
        workdir: Path,
        runtime_info: RuntimeInfo,
        observers: Iterable[Observer] = (),
    ) -> None:
        self._config, self._stop, self._store, self._workdir = config, stop, store, workdir
        self.progress = Progress(config, stop, runtime_info)
        self.prometheus = Prometheus(config)
        self._metrics = JsonLines(workdir / METRICS, config.stage.name)
        self._storing = threading.Lock()
        """Held while metrics are uploaded."""
        self._samples: SampleSink | None = None
        self._extra = tuple(observers)

    def also(self, observers: Iterable[Observer]) -> None:
        """Add observers for all further reports."""
        self._extra += tuple(observers)

    def observer(self, *more: Observer) -> Observers:
        """Return one observer that forwards to all sinks and `more`."""
        return Observers([self.progress, self._metrics, self.prometheus, *more, *self._extra])

    def watch(self, totals: Callable[[], Mapping[str, float]]) -> None:
        """Let the metrics endpoint show `totals`, counters since the attempt's start, and the count of lost samples."""

        def counted() -> dict[str, float]:
            return {"samples_lost": float(self._samples.lost) if self._samples is not None else 0.0, **totals()}

        self.prometheus.watch(counted)

    def keep_samples(self, prompts: Mapping[str, str]) -> SampleSink:
        """Create and return the sink of the stage's rollouts. The caller runs its loop. `prompts` is by problem id."""
        stage = self._config.stage.name
        self._samples = SampleSink(self._store, stage, self._config.ordinal, prompts, self._workdir / "samples")
        return self._samples

    def evaluated(self, figures: Mapping[str, float]) -> None:
        """Report the result of an Evaluate stage's target to the metrics endpoint and to the operator."""
        self.prometheus.evaluated(figures)
        self.progress.evaluated(figures)

    def committed(self, committed: CommittedCheckpoint) -> None:
        """Report a committed checkpoint."""
        manifest = committed.manifest
        self.prometheus.committed(manifest)
        self.progress.checkpoint = CheckpointSummary(
            uri=committed.ref.uri, digest=committed.ref.digest, step=manifest.step
        )

    async def keep_in_time(self) -> None:
        """Store, before each commit, what was reported about its steps, because no later attempt repeats them."""
        try:
            await self._stop.before(Moment.REPORTED, self.keep())
        except StopReached:
            log.warning("the checkpoint comes before metrics and samples: the stop leaves no time for both")

    async def keep(self) -> None:
        """Store the metrics and samples that were reported so far."""
        if self._metrics.path.exists():
            key = metrics_key(self._config.stage.name, self._config.ordinal)
            try:
                await asyncio.to_thread(self._put_metrics, key)
            except (StorageError, OSError) as error:
                log.error("metrics.jsonl could not be stored, the next checkpoint tries again: %s", error)
        if self._samples is not None:
            await self._samples.flush()

    def _put_metrics(self, key: str) -> None:
        # An upload that was given up still runs, and must not replace this one, which has more steps. The file is read
        # at once, because training appends to it.
        with self._storing:
            self._store.put_bytes(key, self._metrics.path.read_bytes())

    def give_up(self) -> None:
        """Count samples that are not stored by now as lost."""
        if self._samples is not None:
            self._samples.give_up()
