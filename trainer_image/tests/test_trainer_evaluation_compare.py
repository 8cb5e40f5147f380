"""Two stored evaluations side by side."""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation_world import make_context, model_folder

from deepcoder_trainer.checkpoint.errors import CheckpointDamaged
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation.compare import Compared, add_arguments, compare_sides, main, markdown, open_side
from deepcoder_trainer.evaluation.run import run_evaluate_stage


async def measured(folder: Path, skill: float, problems: int = 40, samples: int = 4) -> str:
    """The folder of an evaluation of a model of this skill."""
    model_folder(folder / "base", skill)
    context = make_context(folder, ["Base"], problems=problems, samples=samples)
    done = await run_evaluate_stage(context)
    return f"{context.store.uri.removeprefix('file://')}/eval/{done.key}"


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return main(parser.parse_args(arguments))


async def test_problems_are_paired_and_what_else_differs_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low, high = await measured(tmp_path / "low", 0.2), await measured(tmp_path / "high", 0.7)
    assert run(low, high, "--output", str(tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "comparison.md").read_text() in printed + "\n"
    compared = Compared.from_json((tmp_path / "out" / "comparison.json").read_bytes())
    assert set(compared.differs) == {"model"}, "all else is the same: the difference is the models'"
    pair = compared.sets["held"]
    assert pair.comparison is not None
    assert pair.a is not None
    assert pair.b is not None
    assert pair.comparison.difference.mean == pytest.approx(pair.b.mean - pair.a.mean)
    assert pair.comparison.difference.low > 0
    assert pair.comparison.p_value is not None
    assert pair.comparison.p_value < 0.001
    assert pair.better["A"] == 0 < pair.better["B"]
    assert f"held: 40 | {pair.a.mean:.3f}" in printed


async def test_an_evaluation_beside_itself_differs_in_nothing(tmp_path: Path) -> None:
    side = open_side(await measured(tmp_path, 0.4), None)
    compared = compare_sides(side, side)
    assert compared.differs == {}
    comparison = compared.sets["held"].comparison
    assert comparison is not None
    assert (comparison.difference.mean, comparison.p_value) == (0, 1)


async def test_problems_that_one_was_asked_alone_are_left_out_and_counted(tmp_path: Path) -> None:
    more, fewer = await measured(tmp_path / "a", 0.3), await measured(tmp_path / "b", 0.3, problems=25)
    compared = compare_sides(open_side(more, None), open_side(fewer, None))
    pair = compared.sets["held"]
    assert (pair.problems, pair.alone) == (25, {"A": 15, "B": 0})
    assert "held.digest" in compared.differs


async def test_another_number_of_samples_is_said_to_make_p_approximate(tmp_path: Path) -> None:
    one, four = await measured(tmp_path / "a", 0.3, samples=1), await measured(tmp_path / "b", 0.3)
    compared = compare_sides(open_side(one, None), open_side(four, None))
    assert compared.sets["held"].samples == {"A": 1, "B": 4}
    assert "held: A has 1 samples per problem and B 4, so p is approximate" in markdown(compared)
    assert "approximate" not in markdown(compare_sides(open_side(four, None), open_side(four, None)))


async def test_folder_with_one_evaluation_stands_for_it_and_others_are_refused_by_name(tmp_path: Path) -> None:
    folder = Path(await measured(tmp_path, 0.3)).parent.parent
    assert open_side(str(folder), None).target == "Base"
    with pytest.raises(BadConfig, match="has Base"):
        open_side(str(folder), "short")
    with pytest.raises(BadConfig, match="has 0 finished evaluations"):
        open_side(str(tmp_path / "elsewhere"), None)
    [evaluation] = (folder / "eval").iterdir()
    results, manifest = evaluation / "results.json", evaluation / "MANIFEST.json"
    newer = json.dumps({**json.loads(results.read_bytes()), "schemaVersion": 99}).encode()
    before, after = (hashlib.sha256(data).hexdigest() for data in (results.read_bytes(), newer))
    manifest.write_text(manifest.read_text().replace(before, after))
    results.write_bytes(newer)
    with pytest.raises(CheckpointDamaged, match="cannot be read"):
        open_side(str(folder), None)


async def test_sets_that_have_nothing_in_common_are_refused(tmp_path: Path) -> None:
    side = open_side(await measured(tmp_path, 0.3), None)
    other = side.results.model_copy(update={"targets": {"Base": {"kept": side.results.targets["Base"]["held"]}}})
    with pytest.raises(BadConfig, match="measure both on the same problems"):
        compare_sides(side, replace(side, results=other))
