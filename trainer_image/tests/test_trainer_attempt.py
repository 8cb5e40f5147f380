"""One attempt around the training loop: what it asks for, what is stored when, and what its end leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from attempt_world import World
from controller_world import PROMPTS, scripted_reward

from deepcoder_contracts.manifest import Manifest
from deepcoder_contracts.stage import DatasetSource, Evaluation, EvaluationDataset, ModelSource, StageConfig, StageType
from deepcoder_trainer import stopping
from deepcoder_trainer.checkpoint import sources, writer
from deepcoder_trainer.checkpoint.errors import StorageUnavailable
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.export.errors import ExportFailed
from deepcoder_trainer.running import attempt
from deepcoder_trainer.running.attempt import Attempt
from deepcoder_trainer.samples import read_samples
from deepcoder_trainer.stopping import Stop
from deepcoder_trainer.types import Outcome, Problem


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    return lambda steps=3, every=1: World(tmp_path, monkeypatch, steps, every)


async def test_an_attempt_that_ends_by_itself_leaves_all_it_promises(world: Callable[..., World]) -> None:
    w = world()
    record = await w.run()
    assert (record.code, record.reason, record.step) == (0, "Completed", 3)
    assert w.exit_record() == record
    assert len(list(w.store.glob("s/samples/*.parquet"))) == 3
    lines = (w.store / "s/attempts/001/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    metrics = json.loads(lines[-1])["metrics"]
    assert metrics["sampler_restarts"] == 2
    assert metrics["checkpoint_upload_seconds"] > 0
    assert metrics["checkpoint_stall_seconds"] >= 0


async def test_samples_and_metrics_of_a_step_are_stored_before_its_checkpoint_is_committed(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    w = world()
    seen: list[tuple[int, int]] = []
    original = writer.put_manifest

    def put(*manifest: Any) -> Any:
        metrics = w.store / "s/attempts/001/metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        seen.append((len(list(w.store.glob("s/samples/*.parquet"))), len(lines)))
        return original(*manifest)

    monkeypatch.setattr(writer, "put_manifest", put)
    await w.run()
    assert all(samples >= step <= lines for step, (samples, lines) in enumerate(seen[:3], start=1))


async def test_a_drain_with_rollouts_that_do_not_end_stores_samples_and_metrics_before_its_checkpoint(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    w = world(steps=6, every=100)
    seen: list[tuple[int, bool]] = []
    original = writer.put_manifest

    def put(*manifest: Any) -> Any:
        metrics = w.store / "s/attempts/001/metrics.jsonl"
        seen.append((len(list(w.store.glob("s/samples/*.parquet"))), metrics.exists()))
        return original(*manifest)

    monkeypatch.setattr(writer, "put_manifest", put)
    w.sampler.holds = lambda group: group >= 2 * PROMPTS
    monkeypatch.setattr(
        stopping, "COMMIT_SHARE", 0.95
    )  # rollouts have one of its seconds, what is seen here the others
    w.learner.on_train = lambda step: w.stop.request(20, "SIGTERM") if step == 2 else None
    record = await w.run()
    assert (record.reason, record.step) == ("Drained", 2)
    assert seen == [(2, True)]


async def test_what_the_model_cannot_do_is_refused_before_a_cluster_is_asked_for(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(resources: Any, weights: float) -> None:
        raise AssertionError("a cluster was asked for")

    monkeypatch.setattr(attempt, "connect_ray", connect)
    w = world()
    stage = w.config.stage.model_copy(update={"context_tokens": 65536})
    w.config = w.config.model_copy(update={"stage": stage})
    record = await w.run()
    assert (record.code, record.field) == (64, "stages[s].contextTokens")
    assert "set it to at most 2048" in record.message
    assert w.exit_record() == record


@pytest.mark.parametrize("content", [None, "{}"], ids=["that is not there", "that cannot be read"])
async def test_a_set_of_the_last_evaluation_stops_the_stage_when_it_begins(
    world: Callable[..., World], tmp_path: Path, content: str | None
) -> None:
    held = tmp_path / "held.jsonl"
    if content is not None:
        held.write_text(content)
    w = world(steps=1000)
    evaluation = Evaluation(datasets=[EvaluationDataset(name="held", uri=str(held))])
    w.config = w.config.model_copy(update={"stage": w.config.stage.model_copy(update={"evaluate": evaluation})})

    async def judged_when_asked_to_stop(*_: Any) -> Outcome:
        await w.stop.reached(stopping.Moment.ASKED)
        return Outcome(1.0, "passed", 0.0)

    w.reward = judged_when_asked_to_stop
    record = await w.run()
    assert (record.code, record.field) == (64, "stage.evaluate.datasets.0.uri")


async def test_a_set_that_storage_does_not_give_now_does_not_stop_the_stage(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unavailable(*_: object, **__: object) -> Path:
        raise StorageUnavailable("the bucket does not answer")

    w = world()
    evaluation = Evaluation(datasets=[EvaluationDataset(name="held", uri="s3://sets/held.jsonl")])
    exam = w.config.stage.model_copy(update={"name": "exam", "type": StageType.EVALUATE, "evaluate": evaluation})
    later = [w.config.model_copy(update={"stage": exam})]
    monkeypatch.setattr(sources, "_from_s3", unavailable)

    async def judged_when_told(*_: Any) -> Outcome:
        while "the bucket does not answer" not in caplog.text:
            await asyncio.sleep(0.01)
        return Outcome(1.0, "passed", 0.0)

    w.reward = judged_when_told
    async with asyncio.timeout(60):
        record = await Attempt(w.config, w.stop, None, later=later).run()
    assert (record.code, record.step) == (0, 3)


async def test_an_attempt_that_finds_other_problems_than_the_one_before_stops_and_says_so(
    world: Callable[..., World],
) -> None:
    w = world(steps=6)
    w.learner.on_train = lambda step: w.stop.request(60, "SIGTERM") if step == 2 else None
    assert (await w.run()).reason == "Drained"
    assert w.config.dataset is not None
    problems = Path(str(w.config.dataset.uri))
    problems.write_text(problems.read_text().replace("say 3", "say three"))
    w.config, w.stop = w.config.model_copy(update={"ordinal": 2}), Stop()
    record = await w.run()
    assert (record.code, record.reason, record.field) == (64, "BadConfig", "dataset.uri")
    assert "was trained on problems with digest" in record.message


async def test_a_hub_s_model_is_one_commit_for_all_ranks_and_in_the_manifests(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A branch may move on between two machines' downloads, and what a run began with is not to be guessed later."""
    w, commit = world(steps=1), "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--org--base/snapshots" / commit
    folder.parent.mkdir(parents=True)
    (tmp_path / "model").rename(folder)
    monkeypatch.setattr(Sources, "model", lambda self, source: folder)
    w.config = w.config.model_copy(update={"model": ModelSource(uri="hf://org/base", revision="main")})
    asked: list[ModelSource] = []

    async def learners(config: StageConfig, model_dir: Path) -> Any:
        asked.append(config.model)
        return w.learner

    monkeypatch.setattr("deepcoder_trainer.learner.group.start_learners", learners)
    assert (await w.run()).reason == "Completed"
    assert [source.revision for source in asked] == [commit]
    manifest = Manifest.from_json((w.store / "s/step-000001.a001/MANIFEST.json").read_bytes())
    assert manifest.model == f"hf://org/base@{commit}"


async def test_the_exit_record_names_the_pod_that_wrote_it(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue may stop an attempt and admit it again: each time its head is another pod."""
    monkeypatch.setenv("POD_UID", "0f0e0d0c-0b0a-4908-8706-050403020100")
    w = world()
    await w.run()
    assert w.exit_record().pod_uid == "0f0e0d0c-0b0a-4908-8706-050403020100"


async def test_the_exit_record_holds_no_secret_of_the_attempts(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What it says stands in the run's status, which more people may read than may read its Secrets."""

    def connect(resources: Any, weights: float) -> None:
        raise RuntimeError("login with the-key-of-the-team, the-token-of-the-pool and hf_AbCdEfGhIjKlMnOpQrSt failed")

    monkeypatch.setenv("WANDB_API_KEY", "the-key-of-the-team")
    token = tmp_path / "token"
    token.write_text("the-token-of-the-pool\n")
    w = world()
    monkeypatch.setattr(attempt, "connect_ray", connect)
    w.config = w.config.model_copy(update={"judge": w.config.judge.model_copy(update={"token_file": str(token)})})
    record = await w.run()
    assert record.message == "login with [redacted], [redacted] and [redacted] failed"
    assert w.exit_record() == record


async def test_an_error_with_a_file_name_that_is_no_unicode_has_an_exit_record(
    world: Callable[..., World], tmp_path: Path
) -> None:
    w = world()
    folder = tmp_path / "published"
    folder.mkdir()
    Path(os.fsdecode(bytes(folder) + b"/caf\xe9.jsonl")).write_text("not JSON")
    w.config = w.config.model_copy(update={"dataset": DatasetSource(uri=str(folder))})
    record = await w.run()
    assert (record.code, record.field) == (64, "dataset")
    assert "caf\ufffd.jsonl:1: not JSON" in record.message
    assert w.exit_record() == record


async def test_the_exit_record_is_put_before_anything_is_closed(world: Callable[..., World]) -> None:
    w = world()
    told: list[bool] = []

    async def close() -> None:
        told.append((w.store / "s/attempts/001/exit.json").exists())

    w.sampler.close = close  # type: ignore[method-assign]
    w.learner.close = close  # type: ignore[method-assign]
    await w.run()
    assert told == [True, True]


async def test_the_thread_that_starts_a_cluster_outlives_the_start(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    w = world()
    threads: list[threading.Thread] = []
    alive: list[bool] = []
    monkeypatch.setattr(attempt, "connect_ray", lambda resources, weights: threads.append(threading.current_thread()))
    w.learner.on_train = lambda step: alive.append(threads[0].is_alive())
    await w.run()
    assert alive == [True, True, True], "a cluster of our own ends with the thread that started it"


async def test_a_stop_ends_the_comparison_of_the_export_and_the_stage_is_over(world: Callable[..., World]) -> None:
    w = world(steps=2)

    async def stop(work: object) -> None:
        w.stop.request(60, "SIGTERM")
        await asyncio.Event().wait()

    w.learner.beside = stop  # type: ignore[assignment,method-assign]
    record = await w.run()
    assert (record.code, record.reason, record.step) == (0, "Completed", 2)
    assert "Not compared: `the attempt was asked to stop (SIGTERM)`" in card(w)


async def test_a_learner_that_is_lost_over_the_comparison_does_not_cost_the_stage(world: Callable[..., World]) -> None:
    w = world(steps=2)
    record = await w.run()
    assert (record.code, record.reason, record.step) == (0, "Completed", 2)
    assert "Not compared: `LearnerLost: it has no model`" in card(w)


async def test_a_ruined_export_fails_the_attempt_and_the_checkpoint_stands(world: Callable[..., World]) -> None:
    w = world(steps=2)

    async def ruined(work: object) -> None:
        raise ExportFailed("the export is not the model that it was made from")

    w.learner.beside = ruined  # type: ignore[assignment,method-assign]
    record = await w.run()
    assert (record.code, record.reason, record.step) == (1, "ExportRuined", 2)
    assert "is not published: the export is not the model" in record.message
    assert (w.store / "s/step-000002.a001/MANIFEST.json").exists()
    assert not list((w.store / "s/export").rglob("MANIFEST.json"))


def card(w: World) -> str:
    return (w.store / "s/export/step-000002.a001/README.md").read_text()


async def test_a_batch_that_no_judge_could_judge_is_stored_and_the_record_says_why(
    world: Callable[..., World],
) -> None:
    async def down(problem: Problem, response: str, key: str) -> Outcome:
        if int(key.split("/")[1]) >= PROMPTS:
            return Outcome(None, "error", 0.0, 3)
        return await scripted_reward(problem, response, key)

    w = world()
    w.reward = down
    record = await w.run()
    assert (record.code, record.reason, record.step) == (75, "SandboxUnavailable", 1)
    rows = read_samples(w.store / "s/samples/step-000002.parquet")
    assert [row["reward"] for row in rows] == [None] * 6


async def test_a_cluster_of_our_own_is_large_enough_for_every_stage_of_a_run(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepcoder_contracts.stage import StageResources
    from deepcoder_trainer.cluster import most_of

    w = world()
    offered: list[tuple[StageResources, float]] = []
    monkeypatch.setattr(attempt, "connect_ray", lambda *asked: offered.append(asked))
    machine = most_of([StageResources(samplers=1, learners=2), StageResources(samplers=3, learners=0)])
    async with asyncio.timeout(30):
        await Attempt(w.config, w.stop, None, (), machine).run()
    [(resources, weights)] = offered
    assert resources == StageResources(samplers=3, learners=2)
    # bfloat16: an embedding, a head, and in each of two layers attention and MLP.
    assert weights == 2 * (2 * 64 * 32 + 2 * (3 * 32 * 64 + 32 * 32 * 3))


@pytest.mark.parametrize("judged", [True, False], ids=["by judges", "by a function of the user's own"])
async def test_judges_hold_admission_back_and_a_users_own_function_does_not(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, judged: bool
) -> None:
    gates: list[Any] = []

    class Noted(attempt.Controller):
        def __post_init__(self) -> None:
            gates.append(self.admission_gate)
            super().__post_init__()

    class Judges:
        capacity, errors = 8, 0

        async def version(self) -> None: ...

        async def max_memory_mb(self) -> None: ...

        def refusal(self, problem: Problem) -> None: ...

        async def run(self) -> None:
            await asyncio.Event().wait()

    @contextlib.asynccontextmanager
    async def connect(config: StageConfig, local: Any) -> AsyncIterator[Judges]:
        yield Judges()

    monkeypatch.setattr(attempt, "Controller", Noted)
    monkeypatch.setattr(attempt, "connect_judge", connect)
    w = world()
    if judged:
        w.config = w.config.model_copy(update={"recipe": w.config.recipe.model_copy(update={"reward": None})})
    assert (await w.run()).code == 0
    assert [gate is not None for gate in gates] == [judged]
