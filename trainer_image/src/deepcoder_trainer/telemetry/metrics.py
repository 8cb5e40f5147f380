"""Metrics of each step as one JSON line.

The file is local and is uploaded with each checkpoint and at the end, so that curves survive the pod. Readers skip a
line that was cut short when the process died.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

from deepcoder_contracts.progress import TrainerPhase
from deepcoder_trainer.protocols import StepReport


def metrics_line(report: StepReport, stage: str, at: float) -> str:
    """Return a step as one JSON object. `at` is in seconds since the epoch. NaN and infinities become null."""
    document = {
        "stage": stage,
        "step": report.step,
        "time": round(at, 3),
        "metrics": {name: _number(value) for name, value in sorted(report.metrics.items())},
        "gauges": {name: _number(value) for name, value in sorted(report.gauges.items())},
        "verdicts": dict(report.verdicts),
        "phase_seconds": {name: round(value, 4) for name, value in report.phase_seconds.items()},
    }
    return json.dumps(document, separators=(",", ":"))


class JsonLines:
    """Appends one line per step."""

    def __init__(self, path: Path, stage: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._stage = stage

    def on_phase(self, phase: TrainerPhase) -> None:
        """Ignored."""

    def on_step(self, report: StepReport) -> None:
        """Append the step."""
        with self.path.open("a") as file:
            file.write(metrics_line(report, self._stage, time.time()) + "\n")


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
