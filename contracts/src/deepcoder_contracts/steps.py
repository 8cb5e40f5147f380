"""Lines of metrics.jsonl, one per trained step, and which line counts if several attempts trained the same stage.

After an attempt is killed, the next one continues from the last checkpoint. From its first step on, only its lines
count, because training continued from its weights: what the earlier attempt trained beyond that checkpoint is lost,
even if the later one ends earlier. An attempt without a line says nothing. A truncated line is skipped.
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
    """Return the steps that count of all attempts, given as (ordinal, lines of metrics.jsonl)."""
    chosen: dict[tuple[str, int], dict[int, StepRecord]] = {}
    for ordinal, lines in attempts:
        for line in lines:
            try:
                record = _step(json.loads(line), ordinal)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            chosen.setdefault((record.stage, ordinal), {})[record.step] = record
    records: list[StepRecord] = []
    cut: dict[str, int] = {}
    for (stage, _), steps in sorted(chosen.items(), key=lambda item: -item[0][1]):
        records += [record for step, record in steps.items() if stage not in cut or step < cut[stage]]
        cut[stage] = min(cut.get(stage, min(steps)), min(steps))
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
