"""Every rollout is a row, and what is stored is what was trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from deepcoder_trainer.samples import SCHEMA, read_samples, samples_table, write_samples
from deepcoder_trainer.types import Finish, Generation, Group, Outcome, Sample, VersionSpan


def sample(group_id: int, index: int, reward: float | None, finish: Finish = Finish.STOP) -> Sample:
    return Sample(
        group_id=group_id,
        index=index,
        prompt_ids=np.array([1, 2, 3], np.int32),
        generation=Generation(
            output_ids=np.array([4, 5], np.int32),
            logprobs=np.array([-0.1, -0.2], np.float32),
            finish=finish,
            text="```python\nprint('é\\0')\n```",
            versions=(VersionSpan(6, 0, 1), VersionSpan(7, 1, 2)),
        ),
        outcome=Outcome(reward, "error" if reward is None else "passed", 0.25, attempts=3),
        limit=8,
    )


def test_rows_hold_everything_in_group_and_index_order(tmp_path: Path) -> None:
    groups = [
        Group(12, "b", 7, (sample(12, 0, None), sample(12, 1, 1.0))),
        Group(11, "a", 6, (sample(11, 0, 0.0, Finish.LENGTH),)),
    ]
    write_samples(tmp_path / "s.parquet", groups, {"a": "Ask a", "b": "Ask b"}, step=3)
    rows = read_samples(tmp_path / "s.parquet")
    assert [(r["group_id"], r["index"]) for r in rows] == [(11, 0), (12, 0), (12, 1)]
    assert rows[0] == {
        "step": 3,
        "group_id": 11,
        "index": 0,
        "problem_id": "a",
        "prompt": "Ask a",
        "response": "```python\nprint('é\\0')\n```",
        "reward": 0.0,
        "verdict": "passed",
        "finish": "length",
        "prompt_tokens": 3,
        "response_tokens": 2,
        "limit_tokens": 8,
        "admitted_version": 6,
        "versions": [{"version": 6, "start": 0, "end": 1}, {"version": 7, "start": 1, "end": 2}],
        "judge_seconds": 0.25,
        "judge_attempts": 3,
        "draw": 0,
        "dropped": False,
    }
    assert rows[1]["reward"] is None


def test_text_that_is_no_valid_unicode_is_still_kept(tmp_path: Path) -> None:
    broken = replace(sample(0, 0, 0.0), generation=replace(sample(0, 0, 0.0).generation, text="a\ud800b"))
    write_samples(tmp_path / "s.parquet", [Group(0, "a", 0, (broken,))], {"a": "Ask"}, step=1)
    assert read_samples(tmp_path / "s.parquet")[0]["response"] == "a\ufffdb"


def test_a_step_without_groups_is_an_empty_file_with_the_columns() -> None:
    table = samples_table([], {}, step=1)
    assert table.num_rows == 0
    assert table.schema == SCHEMA
