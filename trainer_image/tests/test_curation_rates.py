"""Stored pass rates, and the problems that they are of."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curation_world import (
    codeforces_row,
    livecodebench_row,
    mathematics_row,
    official_codeforces_row,
    own_row,
    synthetic_row,
    taco_row,
    write_jsonl,
)

from deepcoder_contracts.stage import EvaluationDataset
from deepcoder_trainer.curation.contamination import EvaluationIndex
from deepcoder_trainer.curation.filters import PASS_RATE, Settings
from deepcoder_trainer.curation.prepare import Input, Preparation, Prepared
from deepcoder_trainer.curation.rates import Measured, read_pass_rates
from deepcoder_trainer.curation.spool import Spool
from deepcoder_trainer.curation.tally import Tally
from deepcoder_trainer.evaluation import samples
from deepcoder_trainer.evaluation.benchmarks import load_benchmark
from deepcoder_trainer.problems.files import DatasetError


def prepared(path: Path, rates: Measured, tally: Tally) -> Prepared:
    with closing(Spool(path.parent)) as spool:
        preparation = Preparation(
            Settings(min_tests=1), tally, spool, evaluations=EvaluationIndex(0.6), pass_rates=rates
        )
        return preparation.run([Input("taco", path)])


def stored(folder: Path, rows: list[dict[str, Any]]) -> Measured:
    fields = ("problem_id", "prompt", "reward")
    schema = pa.schema([samples.SCHEMA.field(name) for name in fields])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "samples.parquet")
    return read_pass_rates(folder / "samples.parquet")


@pytest.mark.parametrize(
    ("make", "statement"),
    [
        (taco_row, "question"),
        (synthetic_row, "prompt"),
        (livecodebench_row, "question_content"),
        (official_codeforces_row, "description"),
        (codeforces_row, "problem"),
        (mathematics_row, "problem"),
        (own_row, "prompt"),
    ],
)
def test_rates_of_an_evaluation_reach_the_rows_that_it_evaluated(make: Any, statement: str, tmp_path: Path) -> None:
    rows = []
    for n in range(3):
        row = make(**{statement: f"{make()[statement]} Number {n} of its kind."})
        rows.append(row | {name: f"{row[name]}-{n}" for name in ("id", "question_id", "problem_id") if name in row})
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    evaluated = load_benchmark(path, EvaluationDataset(name="taco", uri=f"file://{path}")).problems
    rewards = (0.0, 1.0), (1.0, 1.0), (0.0, 0.0)
    table = [
        {"problem_id": p.id, "prompt": p.prompt, "reward": reward}
        for p, of_problem in zip(evaluated, rewards, strict=True)
        for reward in of_problem
    ]
    tally = Tally()
    left = prepared(path, stored(tmp_path, table), tally)
    assert [(c.place, c.pass_rate) for c in left.candidates] == [("taco/rows.jsonl:1", 0.5)]
    assert left.without_rate == 0
    assert [d.filter for d in tally.dropped] == [PASS_RATE, PASS_RATE]


def test_rates_of_other_problems_are_refused_with_one_of_either(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [taco_row(question=f"Print {n}.") for n in range(5)])
    ids = [f"taco-train-{n}" for n in range(5)]
    with pytest.raises(DatasetError, match=r"0 of 5 problems have .*'taco-train-0' is in the samples.*'other-0'"):
        prepared(path, Measured({f"other-{n}": 1.0 for n in range(9)}), Tally())
    with pytest.raises(DatasetError, match=r"2 of 5 problems have .*'taco-train-2'"):
        prepared(path, Measured(dict.fromkeys([*ids[:2], *"abcdefg"], 0.5)), Tally())
    assert prepared(path, Measured(dict.fromkeys(ids[:1], 0.5)), Tally()).without_rate == 4, "rates of a part"
    assert prepared(path, Measured(dict.fromkeys([*ids, *"abcdefg"], 0.5)), Tally()).without_rate == 0


def test_samples_without_a_verdict_are_no_rates(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no sample there was judged"):
        stored(tmp_path, [{"problem_id": "p", "prompt": "?", "reward": None}])
