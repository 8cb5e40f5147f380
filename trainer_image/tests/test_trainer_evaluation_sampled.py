"""`deepcoder-trainer evaluate` with real engines: two share the samples, and kill -9 costs none that was kept."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from real_runs import BUSY, RealRun, make_model

from deepcoder_trainer.evaluation.compare import compare_sides, open_side
from deepcoder_trainer.evaluation.results import EvaluationResults
from deepcoder_trainer.samples import read_samples

pytestmark = [pytest.mark.vllm, pytest.mark.long, pytest.mark.timeout(1800)]

SAMPLES = 256
PROBLEMS = 7


def test_two_engines_share_an_evaluation_that_is_killed_and_goes_on_by_sample(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    output = tmp_path / "evals"
    with RealRun(tmp_path, model, {"uri": f"file://{tmp_path / 'run'}"}, steps=1) as run:
        command = [
            *("evaluate", "--model", str(model), "--datasets", f"held={tmp_path / 'problems.jsonl'}"),
            *("--output-dir", str(output), "--n", str(SAMPLES), "--max-length", "96", "--max-prompt-length", "16"),
            *("--temperature", "1.0", "--top-p", "1.0", "--float32", "--engines", "2"),
        ]
        process = run.start(*command)
        deadline = time.monotonic() + 900
        while not (kept := answers(output)):
            assert time.monotonic() < deadline, run.words()
            if process.poll() is not None:
                assert BUSY in run.words(), f"it ended before anything was kept: {run.words()}"
                process = run.start(*command)
            time.sleep(0.05)
        run.kill(process)
        assert not list(output.glob("eval/*/MANIFEST.json")), "it was killed too late to show anything"
        kept = answers(output)

        run.log.write_bytes(b"")
        process = run.start(*command)
        while process.wait(900) != 0:
            assert BUSY in run.words(), run.words()
            process = run.start(*command)
        said = run.log.read_text()

    assert f"Base on held: {len(kept)} of {PROBLEMS * SAMPLES} were sampled before" in said
    [manifest] = output.glob("eval/*/MANIFEST.json")
    results = EvaluationResults.from_json((manifest.parent / "results.json").read_bytes())
    measured = results.targets["Base"]["held"]
    assert (measured.samples, measured.unjudged) == (PROBLEMS * SAMPLES, 0)
    assert 0 < sum(measured.verdicts.values()) == PROBLEMS * SAMPLES
    rows = {(r["group_id"], r["index"]): r for r in read_samples(manifest.parent / "samples" / "Base" / "held.parquet")}
    assert {place: rows[place]["response"] for place in kept} == kept, "what was kept is what is reported"
    side = open_side(str(output), None)
    assert compare_sides(side, side).differs == {}


def answers(output: Path) -> dict[tuple[int, int], str]:
    """Answers that are kept."""
    return {
        (entry["place"][0], entry["place"][1]): entry["answer"][0]
        for part in output.glob("eval/*/parts/Base/held/*.jsonl")
        for entry in map(json.loads, part.read_text().splitlines())
        if "answer" in entry
    }
