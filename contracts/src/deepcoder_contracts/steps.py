"""Lines of metrics.jsonl, one per trained step, and which line counts if several attempts trained the same step.

After an attempt is killed, the next one repeats the steps since the last checkpoint. For such a step the later
attempt's line counts, because training continued from its weights. A truncated line is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from sys import intern
from typing import Any


@dataclass(frozen=True)
class StepRecord:
    """One step of training."""

    stage: str
    step: int
    ordinal: int
    """Number of the attempt that trained it."""
    time: float
    """Seconds since the epoch."""
    metrics: Mapping[str, float]
    verdicts: Mapping[str, int]
    phase_seconds: Mapping[str, float]


def merge_steps(attempts: Iterable[tuple[int, Sequence[str]]]) -> list[StepRecord]:
    """Return the steps of all attempts, given as (ordinal, lines of metrics.jsonl). The highest ordinal counts."""
    chosen: dict[tuple[str, int], StepRecord] = {}
    for ordinal, lines in attempts:
        for line in lines:
            try:
                record = _step(json.loads(line), ordinal)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            place = (record.stage, record.step)
            if place not in chosen or chosen[place].ordinal <= ordinal:
                chosen[place] = record
    records = list(chosen.values())
    began: dict[str, float] = {}
    for record in records:
        began[record.stage] = min(began.get(record.stage, record.time), record.time)
    return sorted(records, key=lambda r: (began[r.stage], r.stage, r.step))


def _step(document: Mapping[str, Any], ordinal: int) -> StepRecord:
    return StepRecord(
        stage=str(document["stage"]),
        step=int(document["step"]),
        ordinal=ordinal,
        time=float(document["time"]),
        metrics={intern(k): float(v) for k, v in document["metrics"].items() if v is not None},
        verdicts={intern(k): int(v) for k, v in document["verdicts"].items()},
        phase_seconds={intern(k): float(v) for k, v in document["phase_seconds"].items()},
    )
