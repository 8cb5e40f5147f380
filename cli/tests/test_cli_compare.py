"""`compare`: where two runs differ, and figures that can be held against each other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deepcoder_cli.commands.compare import compare
from deepcoder_client.errors import StorageError
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.steps import StepRecord

COMPLETE = {"name": "short", "index": 0, "phase": "Complete", "step": 7, "reward": "0.9"}


def run_of(
    name: str, namespace: str = "team", *, seed: int = 1, tokens: int = 64, approved: tuple[str, ...] = (), **stage: Any
) -> DeepCoderRun:
    return DeepCoderRun.model_validate(
        {
            "metadata": {"namespace": namespace, "name": name, "uid": name},
            "spec": {
                "model": {"uri": "/models/demo"},
                "dataset": {"uri": "/data/train.jsonl"},
                "recipe": {"seed": seed},
                "stages": [{"name": "short", "contextTokens": tokens, "maxSteps": 20}],
                "approvedStages": list(approved),
                "sandbox": {"template": {}},
                "checkpoint": {"s3": {"bucket": "deepcoder", "credentialsSecretRef": {"name": "s3"}}},
            },
            "status": {"phase": "Complete", "ordinal": 2, "stages": [COMPLETE | stage]},
        }
    )


def step(number: int, reward: float, stage: str = "short") -> StepRecord:
    return StepRecord(stage, number, 1, 1000.0 + number, {"reward_mean": reward}, {}, {"sample": 3.0, "train": 2.0})


class Cluster:
    """Runs by name with the steps in their buckets; None for a bucket that does not answer."""

    def __init__(self, **runs: tuple[DeepCoderRun, list[StepRecord] | None]) -> None:
        self.runs = runs
        self.asked: list[tuple[str, str | None]] = []

    def client(self) -> Cluster:
        return self

    def get(self, name: str, namespace: str | None) -> DeepCoderRun:
        self.asked.append((name, namespace))
        return self.runs[name][0]

    def folder(self, run: DeepCoderRun, *, endpoint: str | None) -> Any:
        stored = self.runs[run.metadata.name][1]
        if stored is None:
            raise StorageError("it does not answer")

        class Folder:
            def steps(self) -> list[StepRecord]:
                return stored

        return Folder()


def told(cluster: Any, capsys: pytest.CaptureFixture[str], first: str = "a", second: str = "b") -> dict[str, Any]:
    compare(cluster, first, second, None, "json")
    document = json.loads(capsys.readouterr().out)
    for part, key in (("spec", "field"), ("figures", "name")):
        document[part] = {entry[key]: entry["values"] for entry in document[part]}
    return dict(document)


def test_figures_of_a_stage_are_means_of_its_last_five_steps_also_once_it_has_ended(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A stage that has ended has its last step's figures in the status: one step's reward says little."""
    rewards = [0.9, 0.9, 0.1, 0.2, 0.3, 0.4, 0.5]
    steps = [step(number, reward) for number, reward in enumerate(rewards, 1)]
    ended = run_of("b", results={"reward_mean": "0.5", "entropy": "0.1", "eval/lcb/pass_at_1": "0.25"})
    cluster = Cluster(a=(run_of("a"), [*steps, step(1, 0.0, stage="long")]), b=(ended, steps))
    figures = told(cluster, capsys)["figures"]
    assert figures["short: reward_mean"] == [pytest.approx(0.3), pytest.approx(0.3)]
    assert figures["short: seconds a step"] == [5.0, 5.0]
    assert figures["short: steps"] == [7, 7]
    assert figures["short: eval/lcb/pass_at_1"] == [None, 0.25]
    assert "short: entropy" not in figures


def test_specs_are_compared_field_by_field_and_stages_by_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster(a=(run_of("a"), []), b=(run_of("b", "other", seed=2, tokens=128, approved=("short",)), []))
    document = told(cluster, capsys, second="other/b")
    assert document["spec"] == {
        "recipe.seed": [1, 2],
        "stages[short].contextTokens": [64, 128],
        "approvedStages": [[], ["short"]],
    }
    assert cluster.asked == [("a", None), ("b", "other")]
    assert document["runs"] == ["team/a", "other/b"]


def test_a_run_whose_bucket_does_not_answer_is_compared_by_its_status_and_that_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster: Any = Cluster(a=(run_of("a"), None), b=(run_of("b"), [step(1, 0.5)]))
    document = told(cluster, capsys)
    assert document["figures"]["short: steps"] == [7, 1]
    assert document["figures"]["short: reward_mean"] == [0.9, 0.5]
    assert document["notes"] == ["no figures of steps of a: it does not answer"]
    compare(cluster, "a", "b", None, "table")
    shown = capsys.readouterr()
    assert shown.out.startswith("the specs are the same\n")
    assert shown.err == "note: no figures of steps of a: it does not answer\n"
