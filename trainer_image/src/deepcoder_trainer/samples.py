"""Stores every rollout as Parquet: prompt, response, verdict, and the version of the weights.

There is one row per sample, and one file per step (`samples/step-000120.parquet`) or evaluated target. A run's curves
show that something went wrong; only these rows show what. Token ids and log-probabilities are not stored: they are
several times the text's size and can be computed from it and a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deepcoder_trainer.plain_arrow import pa, pq
from deepcoder_trainer.types import Group, Sample
from deepcoder_trainer.unicode_text import whole

SCHEMA = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("group_id", pa.int64(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("problem_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("reward", pa.float64()),  # null: the judge failed, the sample was quarantined
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("finish", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("response_tokens", pa.int32(), nullable=False),
        pa.field("limit_tokens", pa.int32(), nullable=False),
        pa.field("admitted_version", pa.int64(), nullable=False),
        pa.field(
            "versions",
            pa.list_(pa.struct([("version", pa.int64()), ("start", pa.int32()), ("end", pa.int32())])),
            nullable=False,
        ),
        pa.field("judge_seconds", pa.float64(), nullable=False),
        pa.field("judge_attempts", pa.int32(), nullable=False),
        pa.field("draw", pa.int32(), nullable=False),
        pa.field("dropped", pa.bool_(), nullable=False),  # sampled, not trained: all rewards of the group are equal
    ]
)
"""Columns of a samples file. Readers select columns by name, so columns may be added but never renamed or removed."""


def samples_table(
    groups: Iterable[Group], prompts: Mapping[str, str], step: int, dropped: Iterable[Group] = ()
) -> pa.Table:
    """Return the rows in (group_id, draw, index) order. `prompts` maps the id of a problem to its prompt."""
    both = [(group, False) for group in groups] + [(group, True) for group in dropped]
    rows = [_row(g, sample, prompts[g.problem_id], step, is_dropped) for g, is_dropped in both for sample in g.samples]
    rows.sort(key=lambda r: (r["group_id"], r["draw"], r["index"]))
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_samples(
    path: Path, groups: Iterable[Group], prompts: Mapping[str, str], step: int, dropped: Iterable[Group] = ()
) -> None:
    """Write a samples file."""
    pq.write_table(samples_table(groups, prompts, step, dropped), path, compression="zstd")


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a samples file."""
    return pq.read_table(path).to_pylist()


def _row(group: Group, sample: Sample, prompt: str, step: int, dropped: bool) -> dict[str, Any]:
    generation, outcome = sample.generation, sample.outcome
    return {
        "step": step,
        "group_id": group.group_id,
        "index": sample.index,
        "problem_id": group.problem_id,
        "prompt": prompt,
        "response": whole(generation.text),
        "reward": outcome.reward,
        "verdict": outcome.verdict,
        "finish": generation.finish.value,
        "prompt_tokens": len(sample.prompt_ids),
        "response_tokens": len(generation.output_ids),
        "limit_tokens": sample.limit,
        "admitted_version": group.admitted_version,
        "versions": [{"version": v.version, "start": v.start, "end": v.end} for v in generation.versions],
        "judge_seconds": outcome.seconds,
        "judge_attempts": outcome.attempts,
        "draw": group.draw,
        "dropped": dropped,
    }
