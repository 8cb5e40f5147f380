"""The checkpoint's benchmark runs end to end with toy sizes, and says of each target whether it was missed."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deepcoder_trainer.checkpoint.writer import SaveTimes

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """Loaded by who runs these tests, and not by all who collect them: transformers comes with it."""
    sys.path.insert(0, str(BENCHMARKS))
    import checkpoint

    return checkpoint


@pytest.mark.s3
def test_toy_sizes_run_end_to_end(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    for name in (*benchmark.CREDENTIALS, "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "not the benchmark's")  # so that it is as before, afterwards
    monkeypatch.setattr(sys, "argv", [str(benchmark.__file__), "--tiny", "--page", str(page)])
    with pytest.raises(SystemExit) as ended:  # here, where torch is loaded, which takes longer than the benchmark
        runpy.run_path(str(benchmark.__file__), run_name="__main__")
    assert ended.value.code == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["batch_bytes"] > 8 * 56 * 8, "a finished batch is in each checkpoint: tokens and log-probabilities"
    assert figures["bytes"] > 12 * figures["parameters"], "weights, and both moments"
    assert all(figures[name] > 0 for name in ("stall_ratio", "slowdown_ratio", "upload_ratio", "copy_seconds"))
    assert all(figures[name] > 0 for name in ("upload_cpu_seconds", "plain_cpu_seconds"))
    assert figures["unmet"] == []
    assert "these figures mean nothing" in page.read_text()


def measured(**changes: Any) -> dict[str, Any]:
    return {
        "parameters": 10,
        "alone": [10.0, 10.0],
        "beside": [12.0],
        "saves": [SaveTimes(waited=0.0, copy=0.05, upload=1.0)] * 2,
        "stalls": [0.05] * 2,
        "batch": 1_000,
        "size": 120_000_000,
        "ours": [1.0],
        "plain": [1.5],
        "ours_cpu": [0.3],
        "plain_cpu": [0.2],
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "unmet"),
    [
        ({}, []),
        ({"stalls": [0.05, 0.2]}, ["stall_ratio"]),
        ({"ours": [1.52]}, ["upload_ratio"]),
        ({"beside": [30.0]}, []),
    ],
    ids=["all reached", "held up too long", "a little slower than boto3", "slower steps have no target"],
)
def test_a_target_that_is_missed_is_named(benchmark: ModuleType, changes: dict[str, Any], unmet: list[str]) -> None:
    figures = benchmark.summarize(benchmark.Measured(**measured(**changes)), tiny=False)
    assert figures["unmet"] == unmet


def test_figures_are_shares_of_a_step_alone(benchmark: ModuleType) -> None:
    figures = benchmark.summarize(benchmark.Measured(**measured()), tiny=False)
    assert figures["stall_ratio"] == pytest.approx(0.005)
    assert figures["slowdown_ratio"] == pytest.approx(1.2)
    assert (figures["upload_mb_s"], figures["plain_mb_s"]) == (120.0, 80.0)
    assert (figures["upload_cpu_seconds"], figures["plain_cpu_seconds"]) == (0.3, 0.2)
