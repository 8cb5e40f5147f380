"""A whole run of three stages by hand, in small: the first is short and truncates, the second lifts what it truncated,
the evaluation is longer still. The two sides of training share their device in the first and not in the second.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from real_runs import RealRun, make_model

from deepcoder_contracts.manifest import Manifest
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.verify import walk_chain
from deepcoder_trainer.evaluation.plan import samples_path
from deepcoder_trainer.report.history import read_history
from deepcoder_trainer.samples import read_samples

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

SHORT, LONG, LONGER = 4, 24, 64


def stages(problems: str) -> list[dict[str, Any]]:
    return [
        {"name": "short", "type": "Train", "contextTokens": SHORT, "maxSteps": 3, "placement": "Colocated"},
        {"name": "long", "type": "Train", "contextTokens": LONG, "maxSteps": 3},
        {
            "name": "eval",
            "type": "Evaluate",
            "contextTokens": LONGER,
            "evaluate": {
                "datasets": [{"name": "held", "uri": problems}],
                "samplesPerProblem": 8,
                "targets": ["Base", "long"],
            },
        },
    ]


@pytest.mark.parametrize("precision", ["Float32", pytest.param("BFloat16", marks=pytest.mark.long)])
def test_a_longer_stage_lifts_what_a_shorter_one_truncated(tmp_path: Path, precision: str) -> None:
    # Evaluated as it is trained: a lower temperature would have a random model repeat itself.
    evaluation = {"evaluationTemperature": 1.0, "evaluationTopP": 1.0}
    # What is seen is what lengths do: steps so large that three of them change how long answers are would hide it.
    still = {"learningRate": 1e-5}
    recipe = {"maxOffPolicy": 0, "deterministic": False, "precision": precision, **still, **evaluation}
    folder = tmp_path / "run"
    storage = {"uri": f"file://{folder}", "everySteps": 2}
    with RealRun(tmp_path, make_model(tmp_path / "model"), storage, steps=3, **recipe) as run:
        document = yaml.safe_load(run.path.read_text())
        run.path.write_text(yaml.safe_dump({**document, "stages": stages(document["dataset"]["uri"])}))
        run.finish(run.start())

    store = open_storage(f"file://{folder}")
    history = read_history(store)
    assert [(step.stage, step.step) for step in history.steps] == [(s, i) for s in ("short", "long") for i in (1, 2, 3)]
    truncated = {
        stage: sum(s.metrics["truncated_ratio"] for s in history.steps if s.stage == stage) / 3
        for stage in ("short", "long")
    }
    assert truncated["short"] > 0.4
    assert truncated["long"] < truncated["short"] - 0.2
    longest = {stage: max(lengths(folder, stage)) for stage in ("short", "long")}
    assert longest["short"] == SHORT < longest["long"] <= LONG

    [measured] = history.evaluations
    assert list(measured.results.in_order) == ["Base", "long"]
    for target in ("Base", "long"):
        assert measured.results.targets[target]["held"].truncated_ratio < truncated["long"]
    rows = read_samples(folder / f"eval/{measured.results.key}" / samples_path("long", "held"))
    assert max(row["response_tokens"] for row in rows) > LONG, "it answers at lengths that it was never trained at"
    assert all(not link.problems for link in walk_chain(f"file://{folder}/{history.newest}", deep=True))

    for stage in ("short", "long"):
        [export] = (folder / stage / "export").iterdir()
        assert "logits_compared: true" in (export / "README.md").read_text()
        figures = Manifest.from_json((export / "MANIFEST.json").read_bytes()).metrics
        assert figures["export/logits_mean_kl"] < 1e-3
        assert figures["export/positions"] > 100
        if precision == "Float32":
            assert figures["export/logits_max_abs"] == 0

    for line in metrics_lines(folder):
        found = {name: value for name, value in line["metrics"].items() if name.startswith(("logprob_gap", "ratio_"))}
        assert found
        assert all(math.isfinite(value) for value in found.values()), found
    gaps = [line["gauges"]["sync_logprob_gap_max"] for line in metrics_lines(folder) if line["step"] == 1]
    assert len(gaps) == 2
    assert all(math.isfinite(gap) for gap in gaps)
    if precision == "Float32":
        assert max(gaps) < 1e-5


def lengths(folder: Path, stage: str) -> list[int]:
    paths = sorted(folder.glob(f"{stage}/samples/step-*.parquet"))
    assert len(paths) == 3
    return [row["response_tokens"] for path in paths for row in read_samples(path)]


def metrics_lines(folder: Path) -> list[dict[str, Any]]:
    """Of all attempts: on a busy machine one may end before Ray is there."""
    paths = [path for stage in ("short", "long") for path in sorted(folder.glob(f"{stage}/attempts/*/metrics.jsonl"))]
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]
