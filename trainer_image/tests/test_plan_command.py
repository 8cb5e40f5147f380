"""`deepcoder-trainer plan`: reads any run's file, prints a table, and its exit status says whether something fits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepcoder_contracts.model_shape import KNOWN
from deepcoder_trainer.__main__ import main

EXAMPLES = Path(__file__).parents[2] / "examples"
RUN: dict[str, Any] = {
    "kind": "LocalRun",
    "name": "mine",
    "model": {"uri": "/nowhere"},
    "stages": [
        {"name": "train", "contextTokens": 8192, "maxSteps": 3, "resources": {"accelerators": True}},
        {"name": "test", "type": "Evaluate", "contextTokens": 4096, "evaluate": {"contextTokens": 65536}},
    ],
}


@pytest.fixture
def sizes(tmp_path: Path) -> str:
    path = tmp_path / "sizes.json"
    path.write_text(json.dumps(dict(KNOWN["hf://agentica-org/DeepScaleR-1.5B-Preview"])))
    return str(path)


def write(tmp_path: Path, document: Any) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_the_shipped_14b_is_planned_for_8_16_and_32_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(EXAMPLES / "deepcoder-14b.yaml")]) == 0
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines() if line.strip()[:1].isdigit()]
    assert {row[0] for row in rows} == {"8", "16", "32"}
    assert "14.77 B parameters" in shown
    assert "stages[eval-64k].contextTokens" in shown
    assert shown.count("nothing: it fits") >= 2
    assert "set recipe.activationOffload: true" in shown
    assert "host memory of the first learner: 4.3 GB while its export is written, 3.6 GB while" in shown


def test_the_shipped_1_5b_fits_one_node(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(EXAMPLES / "deepcoder-1.5b.yaml"), "--gpus", "8"]) == 0
    assert "what to change" in capsys.readouterr().out


def test_where_nothing_fits_the_exit_status_is_64(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(EXAMPLES / "deepcoder-14b.yaml"), "--gpus", "8", "--memory", "40"]) == 64
    assert "learners, and set recipe.activationOffload: true" in " ".join(capsys.readouterr().out.split())


def test_a_run_by_hand_is_planned_for_by_its_longest_lengths(
    tmp_path: Path, sizes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", write(tmp_path, RUN), "--model-config", sizes]) == 0
    shown = capsys.readouterr().out
    assert "trained on up to 10240 tokens (stages[train])" in shown
    assert "sampled up to 67584 tokens (stages[test].evaluate.contextTokens)" in shown


def test_learners_have_memory_for_the_stage_whose_own_budget_asks_for_most(
    tmp_path: Path, sizes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def gigabytes(recipe: dict[str, Any]) -> float:
        longer = {"name": "longer", "contextTokens": 16384, "maxSteps": 3}
        stages = [RUN["stages"][0] | {"recipe": recipe}, longer]
        main(["plan", write(tmp_path, RUN | {"stages": stages}), "--model-config", sizes, "--gpus", "8"])
        rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("   8")]
        return float(rows[0][3])

    assert gigabytes({"tokensPerDevice": 65536}) > gigabytes({"tokensPerDevice": 18000}) == gigabytes({"groupSize": 4})


def test_a_stage_config_is_planned_for_and_an_evaluation_has_no_learners(
    tmp_path: Path, sizes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = {"model": {"uri": "/nowhere"}, "stage": RUN["stages"][1], "ordinal": 1}
    assert main(["plan", write(tmp_path, stage), "--model-config", sizes, "--gpus", "8"]) == 0
    shown = capsys.readouterr().out
    assert "trained" not in shown
    assert [line.split()[:4] for line in shown.splitlines() if line.startswith("   8")] == [["8", "0", "8", "-"]]


def test_a_local_models_own_sizes_are_read(tmp_path: Path, sizes: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(Path(sizes).read_text())
    assert main(["plan", write(tmp_path, RUN | {"model": {"uri": str(tmp_path / "model")}})]) == 0


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, [], "give its config.json with --model-config FILE"),
        ({"recipe": {"groupSize": 1}}, [], "recipe.groupSize is 1"),
        ({"stages": []}, [], "stages"),
        (
            {"stages": [{"name": "odd", "contextTokens": 8, "recipe": {"promptsPerStep": 7}}]},
            [],
            "stages[odd].recipe: promptsPerStep 7 cannot be split",
        ),
        ({"kind": "Deployment"}, [], "give a file of kind DeepCoderRun, LocalRun, StageConfig"),
        ({"kind": "DeepCoderRun"}, [], "spec is missing"),
        ({}, ["--gpus", "1"], "give 2 or more"),
        ({}, ["--memory", "0"], "give the GB of one GPU"),
        ({}, ["--model-config", "/nowhere.json"], "--model-config /nowhere.json cannot be read"),
    ],
)
def test_a_wrong_file_or_option_is_refused_with_the_mend(
    tmp_path: Path, changes: dict[str, Any], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", write(tmp_path, RUN | changes), *options]) == 64
    assert message in capsys.readouterr().err


def test_a_full_disk_is_said_to_be_full() -> None:
    command = [sys.executable, "-m", "deepcoder_trainer", "plan", str(EXAMPLES / "deepcoder-14b.yaml")]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (
        1,
        "deepcoder-trainer plan: No space left on device: free space in the folder of its output, or of its temporary "
        "files (TMPDIR)\n",
    )
