"""Samples of an evaluation as Parquet: one row per sample, with everything that the figures are computed from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcoder_trainer.evaluation.answers import LEFT_OUT, Answer
from deepcoder_trainer.evaluation.benchmarks import Facts
from deepcoder_trainer.plain_arrow import pa, pq
from deepcoder_trainer.problems.prompt import EncodedProblem
from deepcoder_trainer.types import Outcome

SCHEMA = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("group_id", pa.int64(), nullable=False),  # the problem's place in its set
        pa.field("index", pa.int32(), nullable=False),
        pa.field("problem_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("reward", pa.float64()),  # null: no judge could judge it
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("finish", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("response_tokens", pa.int32()),
        pa.field("limit_tokens", pa.int32(), nullable=False),
        pa.field("judge_seconds", pa.float64(), nullable=False),
        pa.field("judge_attempts", pa.int32(), nullable=False),
        pa.field("difficulty", pa.string()),
        pa.field("date", pa.string()),  # YYYY-MM-DD
        pa.field("contest_problem", pa.string()),  # 1234A
    ]
)
"""Columns. Readers select them by name; columns are only ever added."""


@dataclass(frozen=True)
class Judged:
    """A response with its verdict."""

    group: int
    index: int
    problem: EncodedProblem
    facts: Facts
    answer: Answer
    outcome: Outcome


def sample_rows(samples: Iterable[Judged], step: int, limit: int) -> list[dict[str, Any]]:
    """Rows in (group, index) order."""
    return [_row(s, step, limit) for s in sorted(samples, key=lambda s: (s.group, s.index))]


def write_rows(path: Path, rows: Sequence[dict[str, Any]], left_out: Sequence[str] = ()) -> None:
    """Write a file; its folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = SCHEMA.with_metadata({LEFT_OUT: json.dumps(left_out)})
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, compression="zstd")


def _row(sample: Judged, step: int, limit: int) -> dict[str, Any]:
    answer, outcome, facts = sample.answer, sample.outcome, sample.facts
    return {
        "step": step,
        "group_id": sample.group,
        "index": sample.index,
        "problem_id": sample.problem.problem.id,
        "prompt": sample.problem.problem.prompt,
        "response": answer.text,
        "reward": outcome.reward,
        "verdict": outcome.verdict,
        "finish": answer.finish,
        "prompt_tokens": len(sample.problem.prompt_ids),
        "response_tokens": answer.tokens,
        "limit_tokens": limit,
        "judge_seconds": outcome.seconds,
        "judge_attempts": outcome.attempts,
        "difficulty": facts.difficulty,
        "date": facts.date.isoformat() if facts.date else None,
        "contest_problem": facts.contest_problem,
    }
