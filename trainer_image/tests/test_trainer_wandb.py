"""Weights & Biases without a network, for real: what a run logged is in the files that `wandb sync` sends.

Each attempt is a process of its own, as in a run: W&B ends its own work when that ends.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.telemetry import trackers

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="W&B is not installed: pip install -r constraints/dev.txt"
)

ATTEMPT = """
import asyncio, sys
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.protocols import StepReport
from deepcoder_trainer.telemetry.trackers import start_trackers

[tracker] = asyncio.run(start_trackers(StageConfig.from_json(sys.stdin.buffer.read())))
for step in map(int, sys.argv[1:]):
    metrics = {"reward_mean": step / 10, "loss": float("nan"), "eval/held/pass_at_1": 0.25}
    gauges = {"idle_ratio{role=learner}": 0.5}
    tracker.on_step(StepReport(step, 10 + step, metrics, {"passed": 3}, {"train": 1.5}, (), gauges))
"""
_BLOCK, _HEADER = 32768, 7


def chunks(data: bytes) -> Iterator[bytes]:
    """Records of a file in LevelDB's log format, which W&B's are after a header of 7 bytes."""
    at, whole = _HEADER, b""
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:  # the rest of a block has no room for a record's header
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (1, 4):  # full, last
            yield whole
            whole = b""


def stored(path: Path) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """Id, config and steps of an offline run."""
    from wandb.proto import wandb_internal_pb2

    name, config, steps = "", {}, []
    for chunk in chunks(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(chunk)
        if record.HasField("run"):
            name = record.run.run_id
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("history"):
            items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            steps.append({"its own": record.history.step.num, **items})
    return name, config, steps


@pytest.fixture
def attempt(
    tmp_path: Path, make_config: Callable[..., StageConfig], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    settings = {"WANDB_PROJECT": "mine", "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "HOME": str(tmp_path)}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)

    def run(*steps: int) -> None:
        command = [sys.executable, "-c", ATTEMPT, *map(str, steps)]
        subprocess.run(command, input=make_config().to_json(), check=True, timeout=120, cwd=tmp_path)

    return run


def test_what_a_run_logs_offline_is_in_the_files_that_are_synced_later(
    attempt: Callable[..., None], tmp_path: Path, make_config: Callable[..., StageConfig]
) -> None:
    attempt(1, 2)
    attempt(3)  # after a crash: another process, the same run
    config = make_config()
    found = [stored(path) for path in sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))]
    assert {name for name, _, _ in found} == {config.run.uid}, "attempts go on with one W&B run"
    steps = {step["step"]: step for _, _, steps in found for step in steps}
    assert sorted(steps) == [11, 12, 13], "numbered over all stages"
    assert steps[12]["train/reward_mean"] == 0.2
    assert steps[12]["eval/held/pass_at_1"] == 0.25
    assert steps[12]["machines/idle_ratio_learner"] == 0.5
    assert steps[12]["seconds/train"] == 1.5
    assert "train/loss" not in steps[12], "what is no number is left out"
    assert found[0][1]["promptsPerStep"] == config.recipe.prompts_per_step


def test_steps_that_are_trained_again_after_a_crash_are_logged_again(
    attempt: Callable[..., None], tmp_path: Path
) -> None:
    # One process, since W&B counts on over attempts only where it has a server.
    attempt(1, 2, 3, 2, 3, 4)
    [path] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    _, _, steps = stored(path)
    assert [step["step"] for step in steps] == [11, 12, 13, 12, 13, 14]
    own = [step["its own"] for step in steps]
    assert own == sorted(set(own)), "W&B takes no step of its own twice"


async def test_a_key_that_is_refused_costs_curves_there_and_not_the_attempt(
    make_config: Callable[..., StageConfig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    def refused(**_: Any) -> None:
        raise wandb.errors.UsageError("api_key not configured (no-tty)")

    monkeypatch.setattr(wandb, "init", refused)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert await trackers.start_trackers(make_config()) == []
    assert "api_key not configured (no-tty)" in caplog.text


async def test_a_server_that_does_not_answer_costs_the_start_some_time_and_not_the_attempt(
    make_config: Callable[..., StageConfig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    answered, came = threading.Event(), []
    monkeypatch.setattr(wandb, "init", lambda **_: came.append(answered.wait(60)))
    monkeypatch.setattr(trackers, "WANDB_SECONDS", 0.2)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert await trackers.start_trackers(make_config()) == []
    assert came == [], "it was not waited for"
    assert "continues without it" in caplog.text
    answered.set()
