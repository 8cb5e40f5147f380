"""A run that is killed with -9 again and again, at random points, is in the end the run that was never disturbed.

Driver, judge, Ray, sampler and learner are killed at once, as on a machine that loses power, and the run is started
again. Weights, the metrics of every step, every sample and the chain of manifests are held against those of one run
that went through.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from kill_points import (
    COMMITTING,
    COPYING,
    EXPORTING,
    LOADING,
    PUSHING,
    RESUMING,
    SAMPLING,
    STARTING,
    TRAINING,
    UPLOADING,
    Watch,
    draw_points,
)
from real_runs import RealRun, make_model

from deepcoder_contracts.exit import ExitRecord
from deepcoder_trainer.checkpoint.verify import walk_chain
from deepcoder_trainer.samples import read_samples

pytestmark = pytest.mark.vllm

MACHINE = frozenset({"judge_capacity", "judge_retries", "memory_peak_bytes", "mfu_ratio"})
"""Metrics of what the machine, or the attempt since its start, was like. By name, so that a new one has to be thought
about; that one in seconds is by the wall clock needs no thought."""


def of_training(values: dict[str, float]) -> dict[str, float]:
    """What has to come out the same whenever the step is done."""
    return {name: value for name, value in values.items() if "_seconds" not in name and name not in MACHINE}


TWENTY = [
    STARTING,
    *[LOADING, RESUMING] * 2,
    *[SAMPLING, TRAINING] * 3,
    *[PUSHING, COPYING, UPLOADING, COMMITTING] * 2,
]
"""And once more when the stage is over."""


def metrics(stage: Path) -> dict[int, dict[str, float]]:
    """Step to its metrics, over all attempts; a step that was done twice must come out the same."""
    found: dict[int, dict[str, float]] = {}
    for path in sorted(stage.glob("attempts/*/metrics.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            values = of_training(row["metrics"]) | row["verdicts"]
            assert found.setdefault(row["step"], values) == values, f"step {row['step']}, again in {path}"
    return found


def differing(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, tuple[float | None, float | None]]:
    names = sorted(ours.keys() | theirs.keys())
    return {k: (ours.get(k), theirs.get(k)) for k in names if ours.get(k) != theirs.get(k)}


def samples(stage: Path) -> dict[str, list[dict[str, Any]]]:
    """Name of each file to its rows, without the time that judging took."""
    return {
        path.name: [{k: v for k, v in row.items() if k != "judge_seconds"} for row in read_samples(path)]
        for path in sorted(stage.glob("samples/*.parquet"))
    }


def export(stage: Path) -> Path:
    [found] = [path.parent for path in stage.glob("export/*/MANIFEST.json")]
    return found


def assert_the_same(killed: RealRun, stage: Path, whole: RealRun, reference: Path) -> None:
    steps = list(range(1, whole.steps + 1))
    ours, theirs = metrics(stage), metrics(reference)
    assert sorted(ours) == sorted(theirs) == steps
    assert {step: differing(ours[step], theirs[step]) for step in steps if ours[step] != theirs[step]} == {}
    assert list(samples(stage)) == [f"step-{step:06d}.parquet" for step in steps]
    assert samples(stage) == samples(reference)
    assert (export(stage) / "model.safetensors").read_bytes() == (export(reference) / "model.safetensors").read_bytes()
    rewards = [row["reward"] for rows in samples(stage).values() for row in rows]
    assert 0.0 < sum(rewards) / len(rewards) < 1.0, "nothing was learned from rewards that are all the same"
    answered = {row["reward"] for rows in samples(stage).values() for row in rows if row["problem_id"] == "mathematics"}
    assert answered == {0.0, 1.0}, "mathematics was not told apart"


def assert_a_whole_chain(uri: str, attempts: int, endpoint: str | None) -> None:
    links = list(walk_chain(uri, deep=True, endpoint=endpoint))
    assert [problem for link in links for problem in link.problems] == []
    manifests = [link.manifest for link in links if link.manifest]
    assert len(manifests) == len(links)
    assert manifests[-1].parent is None
    made = [(m.step, m.ordinal) for m in manifests[1:]]
    assert made == sorted(made, reverse=True), "steps and attempts grow along the chain"
    assert manifests[0].ordinal <= attempts


def kill_again_and_again(
    tmp_path: Path,
    folder: Path,
    storage: dict[str, Any],
    doing: list[str],
    *,
    steps: int,
    seed: int,
    last: str | None = None,
    **more: Any,
) -> Counter[str]:
    """Kills at points drawn from `seed`, `last` at the end; the rest of the run, compared. `folder` is the storage's,
    on this machine. Returns how often it was killed at what."""
    model = make_model(tmp_path / "model", hidden=256, layers=4, mathematics=True)
    settings = {"steps": steps, "mathematics": True, **more}
    with (
        RealRun(tmp_path, model, {**storage, "uri": f"{storage['uri']}/whole"}, **settings) as whole,
        RealRun(tmp_path, model, {**storage, "uri": f"{storage['uri']}/killed"}, **settings) as killed,
    ):
        reference, stage = folder / "whole/short", folder / "killed/short"
        undisturbed = whole.start()
        hit: Counter[str] = Counter()
        points = draw_points(seed, doing)
        for number, point in enumerate([*points, *draw_points(seed, [last] if last else [])], 1):
            process = killed.start()
            while (doing_now := Watch(killed, process, stage).until(point)) is None:
                process = killed.start_again(process)
            killed.kill(process)
            assert process.returncode == -signal.SIGKILL, "it had ended by itself"
            hit[doing_now] += 1
            committed = max((p.parent.name for p in stage.glob("step-*/MANIFEST.json")), default="nothing")
            print(f"kill {number}: {doing_now} (meant: {point}), newest checkpoint {committed}", flush=True)
        killed.finish(killed.start())
        assert killed.left == [], "what killed attempts had left is removed"
        whole.finish(undisturbed)
        assert_the_same(killed, stage, whole, reference)
        claims = sorted(int(path.parent.name) for path in stage.glob("attempts/*/claim.json"))
        assert_a_whole_chain(
            f"{storage['uri']}/killed/short/export/{export(stage).name}", claims[-1], storage.get("endpoint")
        )
        ended = Counter(ExitRecord.from_json(path.read_bytes()).code for path in stage.glob("attempts/*/exit.json"))
        assert ended == {0: 1} | ({1: killed.too_busy} if killed.too_busy else {}), "a killed attempt leaves no word"
    return hit


@pytest.mark.timeout(1800)
def test_a_run_killed_three_times_ends_with_the_same_bits(tmp_path: Path) -> None:
    # With this seed the first kill comes at the second save, so there is a checkpoint to go on from; the others cost
    # little time.
    storage = {"uri": f"file://{tmp_path}", "everySteps": 2}
    hit = kill_again_and_again(tmp_path, tmp_path, storage, [STARTING, LOADING, UPLOADING], steps=8, seed=30)
    assert sum(hit.values()) == 3
    resumed = [line for line in (tmp_path / "killed.log").read_text().splitlines() if "going on from" in line]
    assert resumed, "no attempt went on from a checkpoint"


@pytest.mark.long
@pytest.mark.s3
@pytest.mark.timeout(7200)
def test_a_run_killed_twenty_times_ends_with_the_same_bits(tmp_path: Path, s3: Any) -> None:
    prefix = uuid4()
    storage = {"uri": f"s3://{s3.bucket}/{prefix}", "endpoint": s3.endpoint, "everySteps": 2}
    assert len(TWENTY) == 19
    hit = kill_again_and_again(tmp_path, s3.root / str(prefix), storage, TWENTY, steps=100, seed=1, last=EXPORTING)
    assert sum(hit.values()) == 20
    assert {COPYING, UPLOADING, COMMITTING, EXPORTING} <= set(hit), "a save was killed in each of its parts"
    assert len(hit) >= 8, hit


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_two_learners_and_two_samplers_go_on_to_the_same_bits_too(tmp_path: Path) -> None:
    storage = {"uri": f"file://{tmp_path}", "everySteps": 2}
    resources = {"learners": 2, "samplers": 2}
    doing = [TRAINING, UPLOADING, COMMITTING]
    hit = kill_again_and_again(tmp_path, tmp_path, storage, doing, steps=16, seed=2, resources=resources)
    assert sum(hit.values()) == 3
