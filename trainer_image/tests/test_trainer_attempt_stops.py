"""A stop, or what fails beside training, ends an attempt in time whatever hangs, and costs nothing that is trained."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attempt_world import World
from controller_world import PROMPTS

from deepcoder_contracts.exit import ExitRecord
from deepcoder_trainer import stopping
from deepcoder_trainer.errors import LearnerLost
from deepcoder_trainer.running import attempt
from deepcoder_trainer.telemetry.samples import SampleSink


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    return lambda steps=3, every=1: World(tmp_path, monkeypatch, steps, every)


async def test_closing_that_hangs_does_not_outlast_the_stop(
    world: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    w = world(steps=6, every=100)
    w.learner.on_train = lambda step: w.stop.request(60, "SIGTERM") if step == 2 else None

    async def hang() -> None:
        w.stop.request(-stopping.LEAVE_SECONDS, "its time is over")
        await asyncio.Event().wait()

    w.sampler.close = hang  # type: ignore[method-assign]
    record = await w.run()
    assert (record.code, record.reason, record.step) == (75, "Drained", 2)
    assert w.exit_record() == record
    assert record.manifest_digest is not None
    assert "closing: no time is left" in caplog.text


@pytest.mark.parametrize("fails", [True, False], ids=["it failed", "the stage is over"])
async def test_end_that_hangs_is_left_where_nobody_has_asked_to_stop_after_the_record_is_put(
    fails: bool, world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attempt, "LEAVE_SECONDS", 0.3)
    w = world(steps=2, every=100)
    w.config = w.config.model_copy(update={"storage": w.config.storage.model_copy(update={"drain_seconds": 3})})

    def lost(step: int) -> None:
        if fails and step == 2:
            raise LearnerLost("rank 0 is gone")

    async def hang() -> None:
        await asyncio.Event().wait()

    w.learner.on_train, w.sampler.close = lost, hang  # type: ignore[method-assign]
    record = await w.run()
    assert (record.code, record.reason) == ((1, "LearnerLost") if fails else (0, "Completed"))
    assert w.exit_record() == record
    assert "closing: it hangs, and is left" in caplog.text


async def test_metrics_that_hang_at_the_end_leave_closing_its_time(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next stage of a local run needs the places of this one's samplers and learners."""
    w = world(steps=1)
    w.config = w.config.model_copy(update={"storage": w.config.storage.model_copy(update={"drain_seconds": 1})})
    monkeypatch.setattr(attempt, "LEAVE_SECONDS", 0)
    tell, closed = attempt.Attempt._tell, asyncio.Event()

    async def hang() -> None:
        monkeypatch.setattr(attempt, "LEAVE_SECONDS", 60)
        await asyncio.Event().wait()

    async def hanging(self: attempt.Attempt, record: ExitRecord) -> ExitRecord:
        monkeypatch.setattr(self._sinks, "keep", hang)
        return await tell(self, record)

    async def close() -> None:
        await asyncio.sleep(0.1)
        closed.set()

    monkeypatch.setattr(attempt.Attempt, "_tell", hanging)
    w.sampler.close = close  # type: ignore[method-assign]
    record = await w.run()
    assert record.reason == "Completed"
    assert "metrics and samples: it hangs, and is left" in caplog.text
    assert closed.is_set()
    assert "closing" not in caplog.text


async def test_a_stop_while_the_model_is_fetched_ends_the_attempt_at_once(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    w = world()
    begun, over = threading.Event(), threading.Event()

    def slow(sources: Any, source: Any) -> Path:
        begun.set()
        over.wait()
        raise OSError("nobody waits for this")

    monkeypatch.setattr("deepcoder_trainer.checkpoint.sources.Sources.model", slow)
    task = asyncio.create_task(w.run())
    while not begun.is_set():
        await asyncio.sleep(0.01)
    w.stop.request(60, "SIGTERM")
    try:
        async with asyncio.timeout(60):  # for ever, if it waited for the thread
            record = await task
    finally:
        over.set()
    assert (record.code, record.reason, record.message) == (75, "Drained", "SIGTERM")
    assert w.exit_record() == record


async def test_work_beside_training_that_fails_ends_the_attempt_and_costs_no_step(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    w = world(steps=6, every=100)
    failing = asyncio.Event()
    w.learner.on_train = lambda step: failing.set() if step == 2 else None
    w.sampler.holds = lambda group: group >= 3 * PROMPTS

    async def run(sink: SampleSink) -> None:
        await failing.wait()
        raise RuntimeError("the judge ended 4 times")

    async def let_go_in_the_drain() -> None:
        await w.stop.reached(stopping.Moment.ASKED)
        w.sampler.hold.set()

    monkeypatch.setattr(SampleSink, "run", run)
    monkeypatch.setattr("deepcoder_trainer.telemetry.samples.FLUSH_SECONDS", 0.1)
    letting_go = asyncio.create_task(let_go_in_the_drain())
    record = await w.run()
    letting_go.cancel()
    assert (record.code, record.reason, record.message) == (1, "RuntimeError", "the judge ended 4 times")
    assert record.manifest_digest is not None
    assert [p.parent.name for p in w.store.glob("s/step-*/MANIFEST.json")] == [f"step-{record.step:06d}.a001"]
    assert record.step >= 2


async def test_work_beside_training_that_fails_in_a_drain_does_not_hide_the_drain(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    w = world(steps=6, every=100)
    w.learner.on_train = lambda step: w.stop.request(60, "SIGTERM") if step == 2 else None

    async def run(sink: SampleSink) -> None:
        await w.stop.reached(stopping.Moment.ASKED)
        raise RuntimeError("the judge left first")

    monkeypatch.setattr(SampleSink, "run", run)
    monkeypatch.setattr("deepcoder_trainer.telemetry.samples.FLUSH_SECONDS", 0.1)
    record = await w.run()
    assert (record.code, record.reason, record.message, record.step) == (75, "Drained", "SIGTERM", 2)


async def test_work_beside_training_that_fails_when_the_stage_is_over_does_not_undo_it(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    w = world(steps=2)
    exporting = asyncio.Event()

    async def export(directory: str) -> None:
        exporting.set()
        await asyncio.sleep(0.1)
        Path(directory).mkdir(parents=True, exist_ok=True)

    async def run(sink: SampleSink) -> None:
        await exporting.wait()
        raise RuntimeError("the judge ended 4 times")

    w.learner.save_pretrained = export  # type: ignore[method-assign]
    monkeypatch.setattr(SampleSink, "run", run)
    monkeypatch.setattr("deepcoder_trainer.telemetry.samples.FLUSH_SECONDS", 0.1)
    record = await w.run()
    assert (record.code, record.reason, record.step) == (0, "Completed", 2)


async def test_an_export_that_outlasts_the_stop_is_left_to_the_next_attempt(world: Callable[..., World]) -> None:
    w = world(steps=2)

    async def stop(directory: str) -> None:
        w.stop.request(0.2, "SIGTERM")
        await asyncio.Event().wait()

    w.learner.save_pretrained = stop  # type: ignore[method-assign]
    record = await w.run()
    assert (record.code, record.reason, record.step) == (75, "Drained", 2)
    assert (w.store / "s/step-000002.a001/MANIFEST.json").exists()
