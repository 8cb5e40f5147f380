"""What readers make of an evaluation's results that are not as they were committed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation_world import make_context, results_of

from deepcoder_trainer.checkpoint.errors import CheckpointDamaged
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation.compare import compare_sides, open_side
from deepcoder_trainer.evaluation.run import run_evaluate_stage
from deepcoder_trainer.report.history import read_history


def cheat(data: bytes) -> bytes:
    document = json.loads(data)
    document["targets"]["Base"]["held"]["passAt1"]["mean"] = 0.99
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("results.json", cheat),
        ("results.json", None),
        ("samples/Base/held.parquet", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("samples/Base/held.parquet", None),
    ],
)
async def test_results_and_samples_that_are_not_as_committed_are_neither_shown_nor_compared_nor_taken(
    tmp_path: Path, name: str, change: Callable[[bytes], bytes] | None
) -> None:
    context = make_context(tmp_path, ["Base"], problems=4)
    done = await run_evaluate_stage(context)
    folder = tmp_path / "storage" / "eval" / done.key
    sound = open_side(str(folder), None)
    file = folder / name
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))
    with pytest.raises(CheckpointDamaged, match=name.rpartition("/")[2]):
        compare_sides(sound, open_side(str(folder), None))
    if name == "results.json":
        with pytest.raises(CheckpointDamaged, match=name):
            read_history(context.store)
    if name == "results.json" or change is None:
        with pytest.raises(BadConfig, match=r"damaged since .* remove that folder") as refused:
            await run_evaluate_stage(make_context(tmp_path, ["Base"], problems=4))
        assert refused.value.field == "storage.uri"
        again = replace(make_context(tmp_path, ["Base"], problems=4), again=True)
        beside = await run_evaluate_stage(again)
        assert (beside.found, beside.metrics, beside.key == done.key) == (None, done.metrics, False)


async def test_a_folder_of_something_else_is_no_evaluation(tmp_path: Path) -> None:
    context = make_context(tmp_path, ["Base"], problems=4)
    done = await run_evaluate_stage(context)
    manifest = tmp_path / "storage" / "eval" / done.key / "MANIFEST.json"
    document = json.loads(manifest.read_bytes())
    manifest.write_text(json.dumps({**document, "kind": "Export"}))
    with pytest.raises(CheckpointDamaged, match="is of kind Export, not Evaluation"):
        open_side(str(manifest.parent), None)
    assert results_of(context).key == done.key
