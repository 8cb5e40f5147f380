"""Metrics in every sink, from one report; an observer that fails harms nobody."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from deepcoder_contracts.progress import TrainerPhase
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.protocols import StepReport
from deepcoder_trainer.rollout.metrics import batch_metrics, is_collapsing, quarantined, verdict_counts
from deepcoder_trainer.telemetry.live import LiveView, sparkline
from deepcoder_trainer.telemetry.metrics import JsonLines
from deepcoder_trainer.telemetry.observers import Observers
from deepcoder_trainer.telemetry.trackers import start_trackers
from deepcoder_trainer.types import Batch, Finish, Generation, Group, Outcome, Sample, VersionSpan


@pytest.fixture
def report(make_batch: Callable[..., Batch]) -> StepReport:
    batch = make_batch(seed=1, groups=4, size=4)
    metrics = {**batch_metrics(batch.groups, 3), "loss": float("nan"), "eval/held/pass_at_1": 0.25}
    gauges = {"idle_ratio{role=learner}": 0.5}
    return StepReport(2, 12, metrics, verdict_counts(batch.samples), {"train": 1.5}, batch.groups, gauges)


def test_a_step_is_one_json_line_without_nan(tmp_path: Path, report: StepReport) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl", "short")
    sink.on_step(report)
    sink.on_step(report)
    first, second = [json.loads(line) for line in sink.path.read_text().splitlines()]
    assert first["metrics"] == second["metrics"]
    assert (first["stage"], first["step"]) == ("short", 2)
    assert first["metrics"]["loss"] is None
    assert first["metrics"]["eval/held/pass_at_1"] == 0.25
    assert first["gauges"] == {"idle_ratio{role=learner}": 0.5}


def test_quarantined_samples_are_counted_and_belong_to_no_other_figure(make_batch: Callable[..., Batch]) -> None:
    batch = make_batch(seed=5, groups=6, size=4, quarantined=0.3)
    lost = quarantined(batch.samples)
    judged = [s.outcome.reward for s in batch.samples if s.outcome.reward is not None]
    metrics = batch_metrics(batch.groups, 4)
    assert metrics["quarantined_ratio"] == pytest.approx(len(lost) / 24)
    assert metrics["reward_mean"] == pytest.approx(sum(judged) / len(judged))
    assert metrics["staleness_max"] == 1


def test_figures_of_a_batch_computed_by_hand() -> None:
    def sample(reward: float | None, tokens: int, verdict: str = "passed", *, spans: int = 1, **judged: Any) -> Sample:
        ids = np.zeros(tokens, np.int32)
        versions = tuple(VersionSpan(n, n, n + 1) for n in range(spans))
        finish = Finish.LENGTH if tokens >= 40 else Finish.STOP
        outcome = Outcome(reward, verdict, **{"seconds": 0.5, **judged})
        return Sample(0, 0, ids, Generation(ids, ids.astype(np.float32), finish, "", versions), outcome, limit=40)

    groups = [
        Group(0, "all", 4, (sample(1.0, 10, seconds=1.5), sample(0.5, 20, spans=3))),
        Group(1, "none", 2, (sample(0.0, 40, "other", attempts=3), sample(-1.0, 5, "no_code", attempts=0)), draw=2),
        Group(2, "some", 4, (sample(1.0, 5), sample(None, 60, "error", seconds=9.0, attempts=3), sample(0.0, 5))),
    ]
    assert batch_metrics(groups, 4) == pytest.approx(
        {
            "reward_mean": 1.5 / 6,
            "truncated_ratio": 1 / 6,
            "no_code_ratio": 1 / 6,
            "solved_all_ratio": 1 / 3,
            "solved_none_ratio": 1 / 3,
            "groups_dropped": 2,
            "quarantined_ratio": 1 / 7,
            "response_tokens_mean": 145 / 7,
            "response_tokens_p95": 54,
            "response_tokens_max": 60,
            "tokens_sampled": 145,
            "staleness_mean": 2 / 3,
            "staleness_max": 2,
            "version_spans_mean": 9 / 7,
            "judge_seconds_mean": 4 / 6,
            "judge_retries": 4,
        }
    )


def test_all_cut_off_and_nothing_rewarded_is_a_collapse_and_either_alone_is_not() -> None:
    assert is_collapsing({"truncated_ratio": 0.95, "reward_mean": 0.01})
    assert not is_collapsing({"truncated_ratio": 0.95, "reward_mean": 0.4})
    assert not is_collapsing({"truncated_ratio": 0.2, "reward_mean": 0.0})


def test_an_observer_that_fails_harms_neither_training_nor_the_others(report: StepReport) -> None:
    heard: list[int] = []

    class Broken:
        def on_phase(self, phase: TrainerPhase) -> None:
            raise OSError("disk full")

        def on_step(self, report: StepReport) -> None:
            raise OSError("disk full")

    class Fine:
        def on_phase(self, phase: TrainerPhase) -> None:
            heard.append(0)

        def on_step(self, report: StepReport) -> None:
            heard.append(report.step)

    observers = Observers([Broken(), Fine()])
    observers.on_phase(TrainerPhase.TRAINING)
    observers.on_step(report)
    assert heard == [0, 2]


def test_the_live_view_shows_stage_curves_and_verdicts(
    report: StepReport, make_config: Callable[..., StageConfig]
) -> None:
    console = Console(record=True, width=120, force_terminal=True)
    with LiveView(console) as view:
        view.begin(make_config())
        view.on_phase(TrainerPhase.TRAINING)
        view.on_step(report)
    text = console.export_text()
    assert "short" in text
    assert "step 2/10" in text
    assert "passed 16" in text
    assert sparkline([0.0, 0.5, 1.0], 1.0) == "▁▅█"


def test_the_live_view_goes_on_after_a_step_whose_figures_are_no_numbers(
    report: StepReport, make_config: Callable[..., StageConfig]
) -> None:
    console = Console(record=True, width=120, force_terminal=True)
    with LiveView(console) as view:
        view.begin(make_config())
        view.on_step(replace(report, metrics={"reward_mean": 0.25, "entropy": math.nan, "grad_norm": math.inf}))
        view.on_step(replace(report, metrics={"reward_mean": 0.75, "entropy": 0.5, "grad_norm": 1.0}))
    text = console.export_text()
    assert "▃▇" in text, "the curve of what was a number at both steps"
    assert "entropy" in text


async def test_tensorboard_gets_every_finite_number_at_the_runs_step(
    tmp_path: Path, report: StepReport, make_config: Callable[..., StageConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("DEEPCODER_TENSORBOARD_DIR", str(tmp_path))
    [tracker] = await start_trackers(make_config())
    tracker.on_step(report)
    events = event_accumulator.EventAccumulator(str(tmp_path / "demo" / "short"))
    events.Reload()
    assert "train/loss" not in events.Tags()["scalars"]
    assert events.Scalars("machines/idle_ratio_learner")[0].value == 0.5
    [point] = events.Scalars("train/reward_mean")
    assert (point.step, point.value) == (12, pytest.approx(report.metrics["reward_mean"]))


async def test_tensorboard_forgets_the_steps_that_are_trained_again_after_a_crash(
    tmp_path: Path, report: StepReport, make_config: Callable[..., StageConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("DEEPCODER_TENSORBOARD_DIR", str(tmp_path))
    for attempt, steps in ((1, (1, 2, 3)), (2, (2, 3, 4))):
        [tracker] = await start_trackers(make_config())
        for step in steps:
            tracker.on_step(replace(report, total_steps=step, metrics={"reward_mean": float(10 * attempt + step)}))
    events = event_accumulator.EventAccumulator(str(tmp_path / "demo" / "short"))
    events.Reload()
    found = [(point.step, point.value) for point in events.Scalars("train/reward_mean")]
    assert found == [(1, 11.0), (2, 22.0), (3, 23.0), (4, 24.0)]


async def test_a_tracker_that_is_not_installed_is_refused_before_anything_starts(
    make_config: Callable[..., StageConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with pytest.raises(BadConfig, match="wandb is not installed"):
        await start_trackers(make_config())
