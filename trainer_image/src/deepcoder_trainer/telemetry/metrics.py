"""Metrics of each step: one JSON line, and gauges for Prometheus.

The JSON Lines file is local and is put to storage beside each checkpoint and at the end, so that curves survive the
pod. Prometheus has base units and no run label: the scrape target has it. A sink that fails is logged and never
stops training.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from deepcoder_contracts.progress import TrainerPhase
from deepcoder_trainer.ports import StepReport

log = logging.getLogger(__name__)

PREFIX = "deepcoder_trainer_"
PORT_VARIABLE = "DEEPCODER_METRICS_PORT"
_LENGTH_BUCKETS = tuple(float(2**n) for n in range(4, 18))
_SECONDS_BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)


def metrics_line(report: StepReport, stage: str, at: float) -> str:
    """A step as one JSON object; `at` in seconds since the epoch. Numbers that are none become null."""
    document = {
        "stage": stage,
        "step": report.step,
        "time": round(at, 3),
        "metrics": {name: value if math.isfinite(value) else None for name, value in sorted(report.metrics.items())},
        "verdicts": dict(report.verdicts),
        "phase_seconds": {name: round(value, 4) for name, value in report.phase_seconds.items()},
    }
    return json.dumps(document, separators=(",", ":"))


class JsonLines:
    """Appends a line a step."""

    def __init__(self, path: Path, stage: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._stage = stage

    def on_phase(self, phase: TrainerPhase) -> None:
        """Not of interest."""

    def on_step(self, report: StepReport) -> None:
        """Append it."""
        with self.path.open("a") as file:
            file.write(metrics_line(report, self._stage, time.time()) + "\n")


class Prometheus:
    """Gauges of the last step, counters and histograms over all; served where `DEEPCODER_METRICS_PORT` says."""

    def __init__(self, stage_index: int) -> None:
        self.registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        self._gauge("stage_index", "Position of the stage in the run").set(stage_index)
        self._phase = Gauge(f"{PREFIX}phase", "1 for what the attempt is doing", ["phase"], registry=self.registry)
        self._samples = Counter(f"{PREFIX}samples", "Judged samples", ["finish", "verdict"], registry=self.registry)
        self._tokens = Counter(f"{PREFIX}tokens_sampled", "Response tokens", registry=self.registry)
        self._length = Histogram(
            f"{PREFIX}response_tokens", "Response length", buckets=_LENGTH_BUCKETS, registry=self.registry
        )
        self._staleness = Histogram(
            f"{PREFIX}staleness_steps",
            "Versions between a group's admission and its training",
            buckets=(0, 1, 2, 3, 4, 8, 16),
            registry=self.registry,
        )
        self._seconds = Histogram(
            f"{PREFIX}phase_seconds", "Seconds of a step", ["phase"], buckets=_SECONDS_BUCKETS, registry=self.registry
        )

    def serve(self) -> None:
        """Open the scrape port, where one is asked for; without it training goes on unwatched."""
        port = os.environ.get(PORT_VARIABLE)
        if not port:
            return
        try:
            start_http_server(int(port), registry=self.registry)
        except (OSError, ValueError) as error:
            log.error("no metrics are served, %s=%s: %s", PORT_VARIABLE, port, error)

    def on_phase(self, phase: TrainerPhase) -> None:
        """Mark it."""
        for each in TrainerPhase:
            self._phase.labels(each.value).set(each is phase)

    def on_step(self, report: StepReport) -> None:
        """Set gauges, count samples."""
        self._gauge("step", "Finished steps of the stage").set(report.step)
        for name, value in report.metrics.items():
            if not name.startswith("eval/"):
                self._gauge(name, "Value of the last step").set(value)
        for phase, seconds in report.phase_seconds.items():
            self._seconds.labels(phase).observe(seconds)
        oldest = min((g.admitted_version for g in report.groups), default=0)
        trained_by = oldest + report.metrics.get("staleness_max", 0.0)
        for group in report.groups:
            self._staleness.observe(trained_by - group.admitted_version)
            for sample in group.samples:
                self._samples.labels(sample.generation.finish.value, sample.outcome.verdict).inc()
                self._tokens.inc(len(sample.generation.output_ids))
                self._length.observe(len(sample.generation.output_ids))

    def _gauge(self, name: str, text: str) -> Gauge:
        # Names that a counter or histogram has already are told apart by "last".
        full = f"{PREFIX}{name}"
        if name in ("tokens_sampled", "response_tokens", "staleness_steps"):
            full = f"{PREFIX}last_{name}"
        if full not in self._gauges:
            self._gauges[full] = Gauge(full, text, registry=self.registry)
        return self._gauges[full]
