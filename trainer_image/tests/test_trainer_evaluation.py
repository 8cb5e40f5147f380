"""Evaluations: figures from samples, keys from inputs, targets from storage, and what a restart does not do again."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepcoder_contracts.layout import evaluation_dir, export_dir
from deepcoder_contracts.manifest import Manifest, ManifestKind, RunIdentity
from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.stage import (
    Evaluation,
    EvaluationDataset,
    ModelSource,
    Provenance,
    StageConfig,
    StageResources,
    StageSettings,
    StageType,
    Storage,
)
from deepcoder_trainer.checkpoint.errors import StorageUnavailable
from deepcoder_trainer.checkpoint.reader import read_manifest
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.checkpoint.storage import ObjectStore, open_storage
from deepcoder_trainer.checkpoint.transfer import upload_files
from deepcoder_trainer.checkpoint.verify import walk_chain
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation import run as evaluation_run
from deepcoder_trainer.evaluation.cli import local_run
from deepcoder_trainer.evaluation.context import EvaluationContext
from deepcoder_trainer.evaluation.plan import DatasetInput, EvaluationPlan, TargetInput
from deepcoder_trainer.evaluation.results import EvaluationResults, compare, dataset_result, metrics, scores
from deepcoder_trainer.evaluation.run import evaluate_weights, run_evaluate_stage
from deepcoder_trainer.evaluation.targets import model_digest, newest_export
from deepcoder_trainer.ports import SandboxUnavailable
from deepcoder_trainer.report.history import before_and_after, read_history
from deepcoder_trainer.telemetry.observers import Observers
from deepcoder_trainer.types import Finish, Generation, GenerationRequest, Outcome, Problem, VersionSpan, WeightRefs

RUN = RunIdentity(namespace="local", name="r", uid="00000000-0000-0000-0000-000000000001")
DIGEST = "sha256:" + "0" * 64


def row(group: int, index: int, reward: float | None, finish: str = "stop", tokens: int = 10) -> dict[str, Any]:
    return {
        "group_id": group,
        "index": index,
        "problem_id": f"p{group}",
        "reward": reward,
        "verdict": "error" if reward is None else "passed" if reward else "wrong_answer",
        "finish": finish,
        "response_tokens": tokens,
    }


# --- figures


def test_figures_of_a_table_computed_by_hand() -> None:
    rows = [row(0, 0, 1), row(0, 1, 0, "length", 20), row(1, 0, 0), row(1, 1, None), row(2, 0, 1), row(2, 1, 1)]
    result = dataset_result(rows)
    assert (result.problems, result.samples, result.unjudged) == (3, 6, 1)
    assert result.pass_at_1 is not None
    assert result.pass_at_1.mean == pytest.approx((0.5 + 0 + 1) / 3)
    assert result.pass_at_k["1"] == pytest.approx(0.5)
    assert result.pass_at_k["2"] == 1.0  # the second problem has one judged sample and cannot tell
    assert result.truncated_ratio == pytest.approx(1 / 6)
    assert result.response_tokens_mean == pytest.approx(70 / 6)
    assert result.verdicts == {"error": 1, "passed": 3, "wrong_answer": 2}


def test_nothing_judged_is_no_number() -> None:
    result = dataset_result([row(0, 0, None)])
    assert result.pass_at_1 is None
    assert result.pass_at_k == {}
    assert metrics({"Base": {"d": result}}) == {}


def test_a_hole_in_the_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="missing"):
        scores([row(0, 0, 1), row(0, 1, 1), row(1, 1, 1)])
    with pytest.raises(ValueError, match="missing"):
        scores([row(0, 0, 1), row(2, 0, 1)])


@pytest.mark.parametrize(
    ("rewards", "pass_at_1", "pass_at_2"),
    [((2.0, -0.5), 0.5, 1.0), ((0.5, 0.5), 1.0, 1.0), ((-1.0, -0.5), 0.0, 0.0), ((3.0, 2.0), 1.0, 1.0)],
)
def test_a_response_is_right_if_its_reward_is_above_0_whatever_number_a_users_reward_gives(
    rewards: tuple[float, float], pass_at_1: float, pass_at_2: float
) -> None:
    result = dataset_result([row(0, index, reward) for index, reward in enumerate(rewards)])
    assert result.pass_at_1 is not None
    assert result.pass_at_1.mean == result.pass_at_k["1"] == pass_at_1
    assert result.pass_at_k["2"] == pass_at_2


def test_comparison_pairs_problems_and_refuses_other_ones() -> None:
    before = scores([row(g, 0, 0) for g in range(8)])
    after = scores([row(g, 0, g % 2) for g in range(8)])
    comparison = compare("d", ("Base", before), ("short", after))
    assert comparison is not None
    assert comparison.difference.mean == 0.5
    assert comparison.difference.low > 0
    assert compare("d", ("a", before), ("b", scores([row(g, 0, None) for g in range(8)]))) is None
    with pytest.raises(ValueError, match="different problems"):
        compare("d", ("a", before), ("b", scores([row(0, 0, 1)])))


def test_metrics_name_the_last_target_and_each_by_name() -> None:
    low, high = dataset_result([row(0, 0, 0)]), dataset_result([row(0, 0, 1)])
    figures = metrics({"Base": {"d": low}, "short": {"d": high}})
    assert figures["eval/d/pass_at_1"] == figures["eval/d/short/pass_at_1"] == 1.0
    assert figures["eval/d/Base/pass_at_1"] == 0.0


def test_every_input_is_in_the_key() -> None:
    plan = EvaluationPlan(
        targets=(TargetInput("Base", "a"),),
        datasets=(DatasetInput("d", "b"),),
        context_tokens=8,
        samples_per_problem=2,
        temperature=0.6,
        top_p=0.95,
        seed=0,
        max_prompt_tokens=16,
        precision="Float32",
        reward=None,
        code_digest="c",
        sampler="vllm 1",
    )
    others: list[dict[str, Any]] = [
        {"targets": (TargetInput("Base", "x"),)},
        {"datasets": (DatasetInput("d", "x"),)},
        {"context_tokens": 9},
        {"samples_per_problem": 3},
        {"temperature": 0.7},
        {"top_p": 1.0},
        {"seed": 1},
        {"max_prompt_tokens": 17},
        {"rope": "{}"},
        {"precision": "BFloat16"},
        {"reward": "m:f"},
        {"code_digest": "x"},
        {"sampler": "vllm 2"},
    ]
    keys = {replace(plan, **change).key for change in others} | {plan.key}
    assert len(keys) == len(others) + 1
    assert {name for change in others for name in change} == set(plan.__dataclass_fields__)


# --- targets


def test_the_newest_export_is_the_highest_step_with_a_manifest_that_no_later_claim_overtook(tmp_path: Path) -> None:
    store = open_storage(f"file://{tmp_path}")
    for key in (
        "short/attempts/001/claim.json",
        "short/export/step-000010.a001/MANIFEST.json",
        "short/attempts/002/claim.json",
        "short/export/step-000020.a002/MANIFEST.json",
        "short/export/step-000040.a001/MANIFEST.json",
        "short/export/step-000030.a002/model.safetensors",
        "shorter/export/step-000050.a001/MANIFEST.json",
    ):
        store.put_bytes(key, b"{}")
        time.sleep(0.002)  # the file system's clock ticks
    assert newest_export("short", store) == "short/export/step-000020.a002"
    assert newest_export("long", store) is None


def test_model_digest_sees_weights_and_words(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"w")
    (tmp_path / "config.json").write_text("{}")
    first = model_digest(tmp_path)
    (tmp_path / "README.md").write_text("not part of it")
    assert model_digest(tmp_path) == first
    (tmp_path / "tokenizer.json").write_text("{}")
    assert model_digest(tmp_path) != first


# --- carrying it out


class Tokenizer:
    """One token a character."""

    chat_template = None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}


@dataclass
class ScriptedSampler:
    """Answers `right` as often as the model it was given says."""

    skill: float = -1.0
    asked: list[GenerationRequest] = field(default_factory=list)

    async def generate(self, request: GenerationRequest) -> Generation:
        assert self.skill >= 0, "weights were never pushed"
        self.asked.append(request)
        assert request.seed is not None
        right = (request.seed % 1000) / 1000 < self.skill
        return Generation(
            output_ids=np.zeros(4, np.int32),
            logprobs=np.zeros(4, np.float32),
            finish=Finish.STOP if right else Finish.LENGTH,
            text="right" if right else "wrong",
            versions=(VersionSpan(1, 0, 4),),
        )

    async def update_weights(self, refs: WeightRefs, version: int) -> None:
        raise AssertionError("pushed by the context")

    async def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class Context(EvaluationContext):
    """Reads a model's skill instead of its weights."""

    async def push(self, directory: Path, version: int) -> None:
        self.sampler.skill = json.loads((directory / "config.json").read_text())["skill"]  # type: ignore[attr-defined]


async def judge(problem: Problem, response: str, key: str) -> Outcome:
    return Outcome(float(response == "right"), "passed" if response == "right" else "wrong_answer", 0.01)


async def broken_judge(problem: Problem, response: str, key: str) -> Outcome:
    return Outcome(None, "error", 0.01, attempts=3)


def model_folder(path: Path, skill: float) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"skill": skill}))
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def export(store: ObjectStore, folder: Path, stage: str, step: int) -> None:
    prefix = export_dir(stage, step, 1)
    manifest = Manifest(
        kind=ManifestKind.EXPORT,
        run=RUN,
        stage=stage,
        stage_index=0,
        ordinal=1,
        step=step,
        total_steps=step,
        config_digest=DIGEST,
        code_digest=DIGEST,
        seed=0,
        world_size=1,
        created_at=datetime.now(UTC),
        files=upload_files(store, prefix, folder, sorted(folder.iterdir())),
    )
    store.put_bytes(f"{prefix}/MANIFEST.json", manifest.to_json(), if_absent=True)


def make_context(
    tmp_path: Path, targets: list[str], reward: Any = judge, *, train: bool = False, problems: int = 40
) -> Context:
    root = tmp_path / "storage"
    root.mkdir(exist_ok=True)
    data = tmp_path / "held.jsonl"
    if not data.exists():
        rows = [
            {"id": f"p{n}", "prompt": f"problem {n}", "tests": [{"input": "", "output": ""}]} for n in range(problems)
        ]
        data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    base = tmp_path / "base"
    if not base.exists():
        model_folder(base, 0.2)
    evaluation = Evaluation(
        datasets=[EvaluationDataset(name="held", uri=str(data))],
        context_tokens=32,
        samples_per_problem=4,
        targets=targets,
    )
    config = StageConfig(
        run=RUN,
        stage=StageSettings(
            name="short" if train else "exam",
            index=0 if train else 2,
            type=StageType.TRAIN if train else StageType.EVALUATE,
            context_tokens=8,
            max_steps=5 if train else 0,
            resources=StageResources(samplers=1, learners=1 if train else 0),
            evaluate=evaluation,
        ),
        earlier_stages=[] if train else ["short", "long"],
        longest_context_tokens=32,
        ordinal=1,
        model=ModelSource(uri=str(base)),
        dataset={"uri": str(data)} if train else None,
        recipe=Recipe(seed=7, max_prompt_tokens=64),
        storage=Storage(uri=f"file://{root}"),
        provenance=Provenance(config_digest=DIGEST),
    )
    workdir = tmp_path / "work"
    workdir.mkdir(exist_ok=True)
    return Context(
        config=config,
        sampler=ScriptedSampler(),
        reward=reward,
        store=open_storage(f"file://{root}"),
        sources=Sources(cache=tmp_path / "cache"),
        tokenizer=Tokenizer(),
        workdir=workdir,
        dtype="float32",
        observer=Observers([]),
    )


def results_of(context: Context) -> EvaluationResults:
    (key,) = {o.key.split("/")[1] for o in context.store.list("eval/")}
    return EvaluationResults.from_json(context.store.get_bytes(f"{evaluation_dir(key)}/results.json"))


async def test_targets_answer_the_same_problems_and_are_paired(tmp_path: Path) -> None:
    context = make_context(tmp_path, ["Base", "short", "long"])
    export(context.store, model_folder(tmp_path / "s", 0.5), "short", 5)
    export(context.store, model_folder(tmp_path / "l", 0.9), "long", 5)
    figures = await run_evaluate_stage(context)
    results = results_of(context)
    means = {t: r["held"].pass_at_1.mean for t, r in results.in_order.items() if r["held"].pass_at_1}
    assert list(means) == ["Base", "short", "long"]
    assert means["Base"] < means["short"] < means["long"]
    assert figures["eval/held/pass_at_1"] == means["long"]
    assert [(c.before, c.after) for c in results.comparisons] == [
        ("Base", "short"),
        ("Base", "long"),
        ("short", "long"),
    ]
    assert all(c.difference.low > 0 for c in results.comparisons)
    sampler = context.sampler
    assert isinstance(sampler, ScriptedSampler)
    assert len(sampler.asked) == 3 * 40 * 4
    assert len({r.seed for r in sampler.asked}) == 40 * 4
    assert {(r.max_tokens, r.temperature, r.top_p) for r in sampler.asked} == {(32, 0.6, 0.95)}

    # The manifest continues the lineage of what was measured last, and every file is as it says.
    links = list(walk_chain(f"{context.store.uri}/{evaluation_dir(results.key)}", deep=True))
    assert [link.manifest.kind for link in links if link.manifest] == [ManifestKind.EVALUATION, ManifestKind.EXPORT]
    assert not any(link.problems for link in links)

    # The report finds it, and one problem that only the last one solved.
    history = read_history(context.store)
    assert history.newest == evaluation_dir(results.key)
    example = before_and_after(context.store, history.evaluations[0])
    assert example is not None
    assert (example.before, example.before_response, example.after, example.after_response) == (
        "Base",
        "wrong",
        "long",
        "right",
    )


async def test_committed_evaluation_is_not_done_again(tmp_path: Path) -> None:
    first = await run_evaluate_stage(make_context(tmp_path, ["Base"]))
    again = make_context(tmp_path, ["Base"])
    assert await run_evaluate_stage(again) == first
    assert again.sampler.asked == []  # type: ignore[attr-defined]


async def test_attempt_that_was_killed_asks_only_the_targets_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(tmp_path, ["Base", "short"])
    export(context.store, model_folder(tmp_path / "s", 0.5), "short", 5)
    with monkeypatch.context() as killed:
        killed.setattr(evaluation_run, "_commit", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            await run_evaluate_stage(context)
    (key,) = {o.key.split("/")[1] for o in context.store.list("eval/")}
    Path(f"{context.store.uri.removeprefix('file://')}/eval/{key}/samples/short/held.parquet").unlink()
    again = make_context(tmp_path, ["Base", "short"])
    await run_evaluate_stage(again)
    assert len(again.sampler.asked) == 40 * 4  # type: ignore[attr-defined]
    assert list(results_of(again).in_order) == ["Base", "short"]


async def test_default_target_is_the_newest_stage_that_exported(tmp_path: Path) -> None:
    context = make_context(tmp_path, [])
    export(context.store, model_folder(tmp_path / "s", 0.5), "short", 5)
    await run_evaluate_stage(context)
    assert list(results_of(context).targets) == ["short"]


async def test_target_without_an_export_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="names long, which has exported no model"):
        await run_evaluate_stage(make_context(tmp_path, ["long"]))


async def test_judges_that_fail_conclude_nothing(tmp_path: Path) -> None:
    context = make_context(tmp_path, ["Base"], broken_judge)
    with pytest.raises(SandboxUnavailable, match="160 of 160"):
        await run_evaluate_stage(context)
    assert context.store.list("eval/") == []


async def test_evaluation_within_training_measures_the_weights_that_are_out(tmp_path: Path) -> None:
    context = make_context(tmp_path, [], train=True)
    context.sampler.skill = 0.5  # type: ignore[attr-defined]
    figures = await evaluate_weights(context, 3)
    assert 0.3 < figures["eval/held/pass_at_1"] < 0.7
    context.sampler.skill = 0.9  # type: ignore[attr-defined]
    assert (await evaluate_weights(context, 4))["eval/held/pass_at_1"] > 0.8
    manifests = [
        read_manifest(context.store, o.key.rsplit("/", 1)[0])[0]
        for o in context.store.list("eval/")
        if o.key.endswith("MANIFEST.json")
    ]
    assert sorted(m.step for m in manifests) == [3, 4]
    assert {m.stage for m in manifests} == {"short"}


async def test_storage_that_does_not_answer_costs_no_evaluation_within_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    context = make_context(tmp_path, [], train=True)
    context.sampler.skill = 0.5  # type: ignore[attr-defined]

    def dead(*_: Any, **__: Any) -> Any:
        raise StorageUnavailable("the line is dead")

    for method in ("get_file", "put_file", "put_bytes"):
        monkeypatch.setattr(context.store, method, dead)
    assert 0.3 < (await evaluate_weights(context, 3))["eval/held/pass_at_1"] < 0.7
    assert "the line is dead" in caplog.text


# --- by hand


def options(**changes: Any) -> Any:
    import argparse

    from deepcoder_trainer.evaluation.cli import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    values: Mapping[str, Any] = {"--model": "m", "--datasets": "d=x.jsonl", "--output-dir": "out", **changes}
    return parser.parse_args([word for item in values.items() for word in item])


def test_other_settings_by_hand_get_another_folder() -> None:
    first = local_run(options())
    assert first.storage.uri == local_run(options()).storage.uri
    for change in ({"--n": "4"}, {"--temperature": "1.0"}, {"--max-length": "64"}, {"--model": "other"}):
        assert local_run(options(**change)).storage.uri != first.storage.uri
    assert local_run(options(**{"--output-dir": "/elsewhere"})).config_digest == first.config_digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--datasets": "x.jsonl"}, "write NAME=URI"),
        ({"--n": "0"}, "samplesPerProblem|samples_per_problem"),
        ({"--top-p": "0"}, "evaluationTopP|evaluation_top_p"),
    ],
)
def test_wrong_options_by_hand_are_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        local_run(options(**change))
