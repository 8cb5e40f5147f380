"""A run by hand before its first step: what it names is looked for, and a first try that was refused binds nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepcoder_contracts.exit import ExitRecord
from deepcoder_trainer import __main__
from deepcoder_trainer.checkpoint.errors import ConfigMismatch
from deepcoder_trainer.checkpoint.opening import open_run_storage, open_storage
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.checkpoint.writer import CheckpointWriter
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.judge.local import LocalJudge
from deepcoder_trainer.localrun import LocalRun
from deepcoder_trainer.running import runner
from deepcoder_trainer.running.runner import check_beginning
from deepcoder_trainer.stopping import Stop


def document(folder: Path, **fields: Any) -> dict[str, Any]:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "problems.jsonl").write_text(json.dumps({"id": "x"}) + "\n")
    problems = f"{folder}/problems.jsonl"
    return {
        "kind": "LocalRun",
        "name": "mine",
        "model": {"uri": f"{folder}/model"},
        "dataset": {"uri": problems},
        "stages": [
            {"name": "short", "type": "Train", "contextTokens": 16, "maxSteps": 4},
            {
                "name": "exam",
                "type": "Evaluate",
                "contextTokens": 64,
                "evaluate": {"datasets": [{"name": "held", "uri": problems}]},
            },
        ],
        "storage": {"uri": f"file://{folder}/run"},
        **fields,
    }


def begun(folder: Path, **fields: Any) -> tuple[LocalRun, ObjectStore]:
    run = LocalRun.model_validate(document(folder, **fields))
    return run, open_run_storage(run.storage)


async def claim(run: LocalRun, folder: Path, ordinal: int) -> None:
    await CheckpointWriter(run.stage_config(0, ordinal, None), None, workdir=folder).claim()


async def test_a_first_try_that_was_refused_does_not_bind_the_second_to_its_mistake(tmp_path: Path) -> None:
    wrong, store = begun(tmp_path, recipe={"seed": 1})
    await claim(wrong, tmp_path, 1)
    mended, _ = begun(tmp_path, recipe={"seed": 2})
    check_beginning(mended, store)
    await claim(mended, tmp_path, 2)
    with pytest.raises(ConfigMismatch):
        await claim(wrong, tmp_path, 3)


@pytest.mark.parametrize("made", ["short/step-000001.a001/MANIFEST.json", "short/attempts/001/metrics.jsonl"])
async def test_a_run_that_has_made_something_keeps_its_configuration(tmp_path: Path, made: str) -> None:
    first, store = begun(tmp_path, recipe={"seed": 1})
    await claim(first, tmp_path, 1)
    store.put_bytes(made, b"{}")
    other, _ = begun(tmp_path, recipe={"seed": 2})
    check_beginning(other, store)
    with pytest.raises(ConfigMismatch, match=r"by hand: another storage\.uri, and parent"):
        await claim(other, tmp_path, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": {"uri": "/nowhere"}}, "model.uri /nowhere does not exist"),
        ({"dataset": {"uri": "/nowhere"}}, "dataset.uri /nowhere does not exist"),
        ({"recipe": {"reward": "nowhere:reward"}}, "by hand put its folder into PYTHONPATH"),
    ],
)
def test_what_is_not_there_is_told_before_the_folder_is_taken(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    run, store = begun(tmp_path, **fields)
    with pytest.raises(BadConfig, match=message):
        check_beginning(run, store)
    assert store.list("") == []


def test_a_set_that_only_the_last_stage_needs_is_missed_before_the_first_begins(tmp_path: Path) -> None:
    stages = document(tmp_path)["stages"]
    stages[1]["evaluate"]["datasets"][0]["uri"] = "/nowhere"
    run, store = begun(tmp_path, stages=stages)
    with pytest.raises(BadConfig) as caught:
        check_beginning(run, store)
    assert caught.value.field == "stages[exam].evaluate.datasets[held].uri"


def test_standings_that_only_the_last_stage_needs_are_missed_before_the_first_begins(tmp_path: Path) -> None:
    stages = document(tmp_path)["stages"]
    stages[1]["evaluate"]["datasets"][0]["contests"] = "/nowhere"
    run, store = begun(tmp_path, stages=stages)
    with pytest.raises(BadConfig) as caught:
        check_beginning(run, store)
    assert caught.value.field == "stages[exam].evaluate.datasets[held].contests"


def test_a_reward_of_ones_own_may_have_programs_run_by_a_judge_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[LocalJudge | None] = []

    def run(config: LocalRun, judge: LocalJudge | None) -> ExitRecord:
        given.append(judge)
        return ExitRecord(code=0, reason="Completed")

    monkeypatch.setattr(__main__, "_run_to_its_end", run)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(document(tmp_path, recipe={"reward": "mine:reward"})))
    assert __main__.main(["run", "--config", str(path)]) == 0
    assert isinstance(given[0], LocalJudge)


def test_a_path_in_the_place_of_a_uri_is_told_with_the_uri() -> None:
    with pytest.raises(ValueError, match=r"write file:///my/run$"):
        open_storage("/my/run")


async def test_what_hangs_when_all_is_stored_does_not_keep_whoever_pressed_ctrl_c() -> None:
    stop = Stop()
    assert runner.seconds_to_end(stop) == runner.UNHURRIED_SECONDS
    stop.request(300, "SIGINT")
    assert runner.seconds_to_end(stop) <= runner.CLOSING_SECONDS + runner.OVERTIME_SECONDS
