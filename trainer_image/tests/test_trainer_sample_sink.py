"""Samples go to storage behind training, and never fill the memory of a run whose storage is slow."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from deepcoder_trainer.checkpoint.storage_file import FileStore
from deepcoder_trainer.ports import StepReport
from deepcoder_trainer.samples import read_samples
from deepcoder_trainer.telemetry.samples import MAX_STEPS, SampleSink
from deepcoder_trainer.types import Batch

PROMPTS = {f"problem-{n}": f"prompt {n}" for n in range(4)}


def report(step: int, batch: Batch | None) -> StepReport:
    return StepReport(step, step, {}, {}, {}, batch.groups if batch else ())


async def test_storage_that_is_too_slow_costs_samples_and_not_memory(
    tmp_path: Path, make_batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = FileStore(tmp_path)
    sink = SampleSink(store, "short", PROMPTS)
    may_put = threading.Event()
    original = store.put_file

    def slow(key: str, path: Path) -> object:
        assert may_put.wait(20)
        return original(key, path)

    monkeypatch.setattr(store, "put_file", slow)
    running = asyncio.create_task(sink.run())
    batch = make_batch(1)
    sink.on_step(report(1, batch))
    await asyncio.sleep(0.05)  # it is being put
    for step in range(2, MAX_STEPS + 4):
        sink.on_step(report(step, batch))
    assert [f"samples of step {n} are lost" in caplog.text for n in range(MAX_STEPS, MAX_STEPS + 4)] == [
        False,
        False,
        True,
        True,
    ]
    may_put.set()
    await sink.flush()
    running.cancel()
    assert len(list(tmp_path.glob("short/samples/*.parquet"))) == MAX_STEPS + 1


async def test_a_second_report_on_a_step_leaves_its_samples_as_they_are(
    tmp_path: Path, make_batch: Callable[..., Batch]
) -> None:
    sink = SampleSink(FileStore(tmp_path), "short", PROMPTS)
    running = asyncio.create_task(sink.run())
    sink.on_step(report(3, make_batch(1)))
    sink.on_step(report(3, None))
    await sink.flush()
    running.cancel()
    [path] = tmp_path.glob("short/samples/*.parquet")
    assert len(read_samples(path)) == 16


async def test_a_step_that_cannot_be_written_costs_its_samples_and_nothing_else(
    tmp_path: Path, make_batch: Callable[..., Batch], caplog: pytest.LogCaptureFixture
) -> None:
    sink = SampleSink(FileStore(tmp_path), "short", {})  # knows no prompt: writing raises what nobody thought of
    running = asyncio.create_task(sink.run())
    sink.on_step(report(1, make_batch(1)))
    await sink.flush()
    sink._prompts = PROMPTS
    sink.on_step(report(2, make_batch(1)))
    await sink.flush()
    assert not running.done()
    running.cancel()
    assert [p.name for p in tmp_path.glob("short/samples/*.parquet")] == ["step-000002.parquet"]
    assert "samples of step 1 are lost" in caplog.text
