"""A run told from its storage: which lines count, the figures, the curves, and what is said of a run without any."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from export_world import manifest
from rich.console import Console

from deepcoder_contracts.layout import metrics_key, samples_key
from deepcoder_contracts.manifest import ManifestKind
from deepcoder_contracts.steps import StepRecord, merge_steps
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.evaluation.results import EvaluationResults, dataset_result
from deepcoder_trainer.report import cli, history
from deepcoder_trainer.report.braille import curve
from deepcoder_trainer.report.cli import render
from deepcoder_trainer.report.figures import run_figures
from deepcoder_trainer.report.history import RunHistory, StoredEvaluation, before_and_after
from deepcoder_trainer.report.plots import boundaries, smoothed


def line(stage: str, step: int, time: float, reward: float = 0.5, truncated: float = 0.0) -> str:
    metrics = {"reward_mean": reward, "truncated_ratio": truncated, "response_tokens_mean": 20.0, "broken": None}
    return json.dumps(
        {
            "stage": stage,
            "step": step,
            "time": time,
            "metrics": metrics,
            "verdicts": {"passed": 3},
            "phase_seconds": {"train": 1.0},
        }
    )


def steps(stage: str, count: int, start: float, rewards: tuple[float, float]) -> list[StepRecord]:
    low, high = rewards
    return merge_steps(
        [(1, [line(stage, n, start + 2 * n, low + (high - low) * (n - 1) / (count - 1)) for n in range(1, count + 1)])]
    )


def test_later_attempt_replaces_the_steps_it_trained_again() -> None:
    first = [line("short", n, n, reward=0.1) for n in range(1, 6)]
    second = [line("short", n, 10 + n, reward=0.9) for n in range(4, 8)]
    for attempts in ([(1, first), (2, second)], [(2, second), (1, first)]):
        records = merge_steps(attempts)
        assert [r.step for r in records] == [1, 2, 3, 4, 5, 6, 7]
        assert [r.metrics["reward_mean"] for r in records] == [0.1] * 3 + [0.9] * 4
        assert "broken" not in records[0].metrics


def test_stages_come_in_the_order_they_ran_and_cut_lines_are_passed_over() -> None:
    records = merge_steps(
        [(1, [line("zebra", 1, 5), line("zebra", 2, 6)[:40]]), (1, [line("ant", 1, 9), "", "{}"])],
    )
    assert [(r.stage, r.step) for r in records] == [("zebra", 1), ("ant", 1)]
    assert boundaries(records) == [1]


def test_figures_computed_by_hand() -> None:
    records = [*steps("short", 10, 0, (0.0, 0.9)), *steps("long", 10, 100, (1.0, 1.9))]
    figures = run_figures(records)
    assert figures is not None
    assert figures.reward_first_fifth == pytest.approx((0 + 0.1 + 0.2 + 0.3) / 4)
    assert figures.reward_last_fifth == pytest.approx((1.6 + 1.7 + 1.8 + 1.9) / 4)
    assert figures.reward_gain == pytest.approx(1.6)
    short, long = figures.stages
    assert (short.name, short.steps, long.name) == ("short", 10, "long")
    assert short.reward_first == pytest.approx(0.2)
    assert short.reward_last == pytest.approx(0.7)
    assert short.seconds_per_step == 2.0
    assert run_figures([]) is None


def test_smoothing_does_not_look_over_a_stage_boundary() -> None:
    assert smoothed([0, 0, 0, 1, 1, 1], [3]) == [0, 0, 0, 1, 1, 1]
    assert smoothed([0, 3, 6], [], window=3) == [1.5, 3, 4.5]


def test_curve_fills_its_frame_from_corner_to_corner() -> None:
    lines = curve([0, 1, 2, 3], 8, 3)
    assert len(lines) == 3
    assert [text[0] for text in lines] == ["3", " ", "0"]
    assert {len(text) for text in lines} == {10}
    assert ord(lines[0][-1]) & 0x08  # last column, highest row
    assert ord(lines[2][2]) & 0x40  # first column, lowest row
    assert curve([], 8, 3) == []
    assert len(curve([1.0], 4, 2)) == 2
    assert len(curve([5.0, 9.0], 4, 2, low=0, high=1)) == 2  # beyond the frame: drawn at its edge


def test_boundary_is_a_vertical_line() -> None:
    lines = curve([0.0] * 10, 10, 4, low=0, high=1, boundaries=[5])
    assert all(any(ord(c) > 0x2800 for c in text[-10:]) for text in lines)


def options(storage: Path, output: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(["--storage", f"file://{storage}", "--output", str(output)])


def test_report_of_a_run_that_is_under_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_storage(f"file://{tmp_path}/run")
    wave = [line("short", n, n, 0.3 + 0.02 * n, 0.4) for n in range(1, 11)]
    store.put_bytes(metrics_key("short", 1), "\n".join(wave).encode())
    store.put_bytes(samples_key("short", 1), b"not read")
    assert cli.main(options(tmp_path / "run", tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert "reward, first to last fifth of 10 steps: 0.330 → 0.490" in said
    document = json.loads((tmp_path / "out/report.json").read_text())
    assert document["training"]["reward_gain"] == pytest.approx(0.16)
    assert document["evaluations"] == document["lineage"] == []
    assert (tmp_path / "out/curves.png").read_bytes().startswith(b"\x89PNG")


def test_report_of_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    assert cli.main(options(tmp_path / "run", tmp_path / "out")) == 1
    assert "holds no run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_evaluation_of_answers_whose_tokens_nobody_counted_is_shown_without_their_length() -> None:
    row = {"group_id": 0, "index": 0, "problem_id": "p", "reward": 1.0, "verdict": "passed", "finish": "stop"}
    results = EvaluationResults(
        key="a" * 64,
        inputs={"targets": [{"name": "Given"}]},
        targets={"Given": {"held": dataset_result([{**row, "response_tokens": None}])}},
    )
    evaluation = StoredEvaluation(manifest(kind=ManifestKind.EVALUATION), results)
    page = io.StringIO()
    Console(file=page, width=100).print(render(RunHistory((), (evaluation,), None), [], None))
    assert "held: 1 × 1" in page.getvalue()


def test_an_example_is_of_a_wrong_answer_and_a_right_one_and_not_of_one_that_nobody_could_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(*rewards: float | None) -> list[dict[str, Any]]:
        verdicts = ["error" if reward is None else str(reward) for reward in rewards]
        return [
            {"prompt": "p", "group_id": n, "reward": reward, "response": f"r{n}", "verdict": verdict}
            for n, (reward, verdict) in enumerate(zip(rewards, verdicts, strict=True))
        ]

    stored = {"Base": rows(None, -1.0, 1.0), "long": rows(1.0, 0.5, 1.0)}
    monkeypatch.setattr(history, "_rows", lambda _store, _evaluation, target, _dataset: stored[target])
    results = SimpleNamespace(in_order=stored, targets={"Base": {"set": None}})
    evaluation = cast("StoredEvaluation", SimpleNamespace(results=results))
    example = before_and_after(open_storage(f"file://{tmp_path}"), evaluation)
    assert example is not None
    assert (example.before_response, example.before_verdict, example.after_verdict) == ("r1", "-1.0", "0.5")
