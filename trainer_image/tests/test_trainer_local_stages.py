"""Later stages of a run by hand: what cannot work in them is told before the first begins, and their gates count."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from attempt_world import ScriptedReward, World

from deepcoder_contracts.exit import ExitCode, ExitRecord
from deepcoder_contracts.layout import MANIFEST, claim_key, evaluation_dir, exit_key
from deepcoder_contracts.manifest import Manifest, ManifestKind
from deepcoder_trainer.checkpoint.opening import open_run_storage
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.localrun import LocalRun, late_refusals
from deepcoder_trainer.running import runner
from deepcoder_trainer.running.attempt import Attempt
from deepcoder_trainer.stopping import Moment
from deepcoder_trainer.types import Outcome

TRAIN = {"name": "short", "type": "Train", "contextTokens": 16, "maxSteps": 2}
EXAM = {
    "name": "exam",
    "type": "Evaluate",
    "contextTokens": 16,
    "evaluate": {"datasets": [{"name": "held", "uri": "/held"}, {"name": "cf", "uri": "/cf", "contests": "/c"}]},
}


def gate(metric: str, window: int = 1, otherwise: str = "Fail", value: float = 0.5) -> dict[str, Any]:
    return {"all": [{"metric": metric, "op": "Ge", "value": value, "window": window}], "otherwise": otherwise}


def local_run(world: World, stages: list[dict[str, Any]]) -> LocalRun:
    config = world.config
    assert config.dataset is not None
    return LocalRun.model_validate(
        {
            "name": "mine",
            "model": {"uri": config.model.uri},
            "dataset": {"uri": config.dataset.uri},
            "recipe": config.recipe,
            "stages": stages,
            "storage": config.storage,
        }
    )


async def run(config: LocalRun) -> ExitRecord:
    async with asyncio.timeout(60):
        return await runner.run(config, None, lambda _: ())


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path, monkeypatch, 2, 1)
    monkeypatch.setattr(runner, "load_reward", lambda name: ScriptedReward(made.reward))
    monkeypatch.setattr(runner.process_exit, "bound", lambda seconds, code: None)
    return made


async def test_a_length_that_only_a_later_stage_has_is_refused_before_the_first_stage_trains(world: World) -> None:
    record = await run(local_run(world, [TRAIN, {**TRAIN, "name": "long", "contextTokens": 65536}]))
    assert (record.code, record.field) == (ExitCode.BAD_CONFIG, "stages[long].contextTokens")
    assert not list(world.store.glob("short/step-*"))


async def test_a_set_of_a_later_stage_that_cannot_be_read_stops_the_first_stage_when_it_begins(
    world: World, tmp_path: Path
) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text("{}")
    exam = {**EXAM, "evaluate": {"datasets": [{"name": "held", "uri": str(held)}]}}
    attempts: list[Attempt] = []

    async def judged_when_asked_to_stop(*_: Any) -> Outcome:
        await attempts[0].stop.reached(Moment.ASKED)
        return Outcome(1.0, "passed", 0.0)

    world.reward = judged_when_asked_to_stop
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "Attempt", lambda *given: attempts.append(Attempt(*given)) or attempts[-1])
        record = await run(local_run(world, [{**TRAIN, "maxSteps": 1000}, exam]))
    assert (record.code, record.field) == (ExitCode.BAD_CONFIG, "stages[exam].evaluate.datasets.0.uri")
    assert "stages[exam]: held: held.jsonl:1" in record.message


async def test_a_run_under_way_is_not_stopped_by_what_a_later_stage_will_refuse(world: World) -> None:
    config = local_run(world, [TRAIN, {**TRAIN, "name": "long", "contextTokens": 65536}])
    open_run_storage(config.storage).put_bytes(f"short/step-000001.a001/{MANIFEST}", b"{}")
    record = await run(config)
    assert record.field == "storage.uri", "its own stage is looked at: the checkpoint is damaged"


@pytest.mark.parametrize(
    ("stages", "field", "message"),
    [
        (
            [TRAIN, {**EXAM, "evaluate": {**EXAM["evaluate"], "targets": ["Base", "shrt"]}}],
            "stages[exam].evaluate.targets",
            "names shrt, which is not an earlier Train stage: use Base, short",
        ),
        (
            [{**EXAM, "evaluate": {**EXAM["evaluate"], "targets": ["short"]}}, TRAIN],
            "stages[exam].evaluate.targets",
            "not an earlier Train stage: use Base$",
        ),
        (
            [{**TRAIN, "evaluate": {**EXAM["evaluate"], "targets": ["Base"]}}],
            "stages[short].evaluate.targets",
            "a Train stage evaluates its own weights: remove it",
        ),
        (
            [{**TRAIN, "promoteWhen": gate("eval/held/pass_at_1")}],
            "stages[short].promoteWhen",
            r"\(eval/held/pass_at_1\): promoteWhen uses an evaluation that the stage does not run: add the dataset",
        ),
        (
            [{**EXAM, "promoteWhen": gate("eval/held/rating")}],
            "stages[exam].promoteWhen",
            r"\(eval/held/rating\): .* does not run: add the dataset .* \(with contests, for a rating\)",
        ),
        (
            [{**EXAM, "promoteWhen": gate("reward_mean")}],
            "stages[exam].promoteWhen",
            r"\(reward_mean, window 1\): an Evaluate stage measures once",
        ),
        (
            [{**EXAM, "promoteWhen": gate("eval/held/pass_at_1", window=2)}],
            "stages[exam].promoteWhen",
            r"\(eval/held/pass_at_1, window 2\): an Evaluate stage measures once",
        ),
    ],
)
def test_what_a_stage_would_refuse_or_ignore_in_its_turn_is_refused_before_the_run_begins(
    world: World, stages: list[dict[str, Any]], field: str, message: str
) -> None:
    config = local_run(world, stages)
    with pytest.raises(BadConfig, match=message) as caught:
        runner.check_beginning(config, open_run_storage(config.storage))
    assert caught.value.field == field


def test_targets_and_gates_that_can_be_met_are_taken(world: World) -> None:
    train = {**TRAIN, "evaluate": EXAM["evaluate"], "promoteWhen": gate("eval/held/pass_at_1", window=3)}
    exam = {**EXAM, "promoteWhen": gate("eval/cf/rating")}
    exam = {**exam, "evaluate": {**EXAM["evaluate"], "targets": ["Base", "short"]}}
    assert not list(late_refusals(local_run(world, [train, {**TRAIN, "name": "b", "promoteWhen": gate("step")}, exam])))


@pytest.mark.parametrize(
    ("value", "otherwise", "code"), [(0.4, "Fail", 1), (0.4, "Hold", 1), (0.4, "Promote", 0), (0.6, "Fail", 0)]
)
async def test_the_gate_of_an_evaluate_stage_stops_the_run_as_in_a_cluster(
    world: World, value: float, otherwise: str, code: int
) -> None:
    held = {"name": "held", "uri": world.config.model.uri}
    exam = {**EXAM, "evaluate": {"datasets": [held]}, "promoteWhen": gate("eval/held/pass_at_1", otherwise=otherwise)}
    config = local_run(world, [exam])
    store = open_run_storage(config.storage)
    store.put_bytes(claim_key("exam", 1), b"{}")
    store.put_bytes(exit_key("exam", 1), ExitRecord(code=0, reason="Completed").to_json())
    put_evaluation(store, config, "a" * 64, "exam", value)
    put_evaluation(store, config, "b" * 64, "short", 0.5)
    record = await run(config)
    assert record.code == code
    assert ("gate unmet" in record.message) == (code == 1)


@pytest.mark.parametrize(("least", "code"), [(1, 0), (99, 1)])
async def test_the_gate_of_a_train_stage_is_judged_by_what_its_last_checkpoint_records(
    world: World, least: float, code: int
) -> None:
    record = await run(local_run(world, [{**TRAIN, "promoteWhen": gate("step", value=least)}]))
    assert (record.code, "gate unmet" in record.message) == (code, code == 1)


def put_evaluation(store: ObjectStore, config: LocalRun, key: str, stage: str, value: float) -> None:
    manifest = Manifest(
        kind=ManifestKind.EVALUATION,
        run=config.identity,
        stage=stage,
        stage_index=0,
        ordinal=1,
        step=0,
        total_steps=0,
        config_digest=config.config_digest,
        code_digest=config.config_digest,
        seed=0,
        world_size=0,
        metrics={"eval/held/pass_at_1": value},
        evaluation_key=key,
        created_at=datetime.now(UTC),
        files=[],
    )
    store.put_bytes(f"{evaluation_dir(key)}/{MANIFEST}", manifest.to_json())
