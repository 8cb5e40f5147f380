"""Samples go to storage behind training: storage that is slow or away costs disk, and what is lost is counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deepcoder_trainer.checkpoint.errors import StorageUnavailable
from deepcoder_trainer.checkpoint.storage_file import FileStore
from deepcoder_trainer.protocols import StepReport
from deepcoder_trainer.samples import read_samples
from deepcoder_trainer.telemetry import samples
from deepcoder_trainer.telemetry.samples import MAX_STEPS, SampleSink
from deepcoder_trainer.types import Batch, Group

PROMPTS = {f"problem-{n}": f"prompt {n}" for n in range(4)}


class Storage(FileStore):
    """Puts when it may, and says so when it may not."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.may_put = threading.Event()
        self.may_put.set()
        self.away = False
        self.error: Exception = StorageUnavailable("no route")
        self.asked = 0

    def put_file(self, key: str, path: Path) -> Any:
        self.asked += 1
        assert self.may_put.wait(20)
        if self.away:
            raise self.error
        return super().put_file(key, path)


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "store")


def sink_of(store: Storage, tmp_path: Path, **more: Any) -> SampleSink:
    return SampleSink(store, "short", 3, PROMPTS, tmp_path / "waiting", **more)


@asynccontextmanager
async def running(sink: SampleSink) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(sink.run())
    yield task
    assert not task.done(), "nothing ends it"
    task.cancel()


def report(step: int, batch: Batch | None) -> StepReport:
    return StepReport(step, step, {}, {}, {}, batch.groups if batch else ())


def drawn(group: Group, draw: int) -> Group:
    return replace(group, draw=draw)


def stored(store: Storage) -> list[str]:
    return sorted(Path(o.key).name for o in store.list("short/samples/"))


def rows(store: Storage, tmp_path: Path, name: str) -> list[dict[str, Any]]:
    store.get_file(f"short/samples/{name}", tmp_path / "got.parquet")
    return read_samples(tmp_path / "got.parquet")


async def test_storage_that_is_slow_for_many_steps_costs_no_sample(
    store: Storage, tmp_path: Path, make_batch: Callable[..., Batch]
) -> None:
    sink, batch, steps = sink_of(store, tmp_path), make_batch(1), 3 * MAX_STEPS
    store.away = True
    async with running(sink):
        for step in range(1, steps + 1):
            sink.on_step(report(step, batch))
            await sink._arrived.join()  # training is slower than this disk
        assert sink.waiting_bytes > 0
        store.away = False
        await sink.flush()
    assert stored(store) == [f"step-{n:06d}.parquet" for n in range(1, steps + 1)]
    assert (sink.lost, sink.waiting_bytes, list((tmp_path / "waiting").iterdir())) == (0, 0, [])


async def test_a_put_that_hangs_holds_back_neither_training_nor_what_is_written_to_disk(
    store: Storage, tmp_path: Path, make_batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "FLUSH_SECONDS", 0.2)
    sink, batch, steps = sink_of(store, tmp_path), make_batch(1), 2 * MAX_STEPS
    store.may_put.clear()
    async with running(sink):
        for step in range(1, steps + 1):
            sink.on_step(report(step, batch))
            async with asyncio.timeout(60):
                await sink._arrived.join()
        await sink.flush()  # within its bound
        assert sink.lost == 0
        store.may_put.set()
        monkeypatch.setattr(samples, "FLUSH_SECONDS", 20)
        await sink.flush()
    assert len(stored(store)) == steps


async def test_a_put_that_outlasts_the_flushes_that_wait_for_it_has_no_second_one_beside_it(
    store: Storage, tmp_path: Path, make_batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, batch = sink_of(store, tmp_path), make_batch(1)
    store.away = True
    async with running(sink):
        sink.on_step(report(1, batch))
        await sink.flush()
        await asyncio.sleep(0.1)  # the background task's own try is refused as well: the next put is a flush's
        refused, store.away = store.asked, False
        monkeypatch.setattr(samples, "FLUSH_SECONDS", 0.2)
        store.may_put.clear()
        for step in (2, 3, 4):
            await sink.flush()
            sink.on_step(report(step, batch))
        await sink.flush()
        assert store.asked == refused + 1
        store.may_put.set()
        monkeypatch.setattr(samples, "FLUSH_SECONDS", 20)
        await sink.flush()
    assert len(stored(store)) == 4


async def test_files_that_wait_have_a_bound_on_disk_and_what_is_beyond_is_counted(
    store: Storage, tmp_path: Path, make_batch: Callable[..., Batch], caplog: pytest.LogCaptureFixture
) -> None:
    store.away = True
    sink, batch = sink_of(store, tmp_path, most_bytes=20_000), make_batch(1)
    async with running(sink):
        for step in range(1, 11):
            sink.on_step(report(step, batch))
            await sink._arrived.join()
        assert 0 < sink.waiting_bytes <= 20_000
        assert sum(p.stat().st_size for p in (tmp_path / "waiting").iterdir()) == sink.waiting_bytes
        store.away = False
        await sink.flush()
    kept = len(stored(store))
    assert 0 < kept < 10
    assert sink.lost == (10 - kept) * len(batch.samples)
    assert f"({sink.lost} so far)" in caplog.text


async def test_a_disk_that_is_slower_than_training_costs_samples_and_no_memory(
    store: Storage, tmp_path: Path, make_batch: Callable[..., Batch]
) -> None:
    sink, batch = sink_of(store, tmp_path), make_batch(1)
    for step in range(1, MAX_STEPS + 3):  # nobody writes
        sink.on_step(report(step, batch))
    assert sink.lost == 2 * len(batch.samples)


async def test_what_storage_has_not_taken_by_the_end_is_counted(
    store: Storage, tmp_path: Path, make_batch: Callable[..., Batch], caplog: pytest.LogCaptureFixture
) -> None:
    store.away = True
    sink, batch = sink_of(store, tmp_path), make_batch(1)
    async with running(sink):
        sink.on_step(report(1, batch))
        await sink.flush()
    sink.give_up()
    assert sink.lost == len(batch.samples)
    assert "by the attempt's end" in caplog.text


async def test_what_still_waits_in_memory_at_the_end_is_counted_too(
    store: Storage, tmp_path: Path, make_batch: Callable[..., Batch]
) -> None:
    sink, batch = sink_of(store, tmp_path), make_batch(1)
    for step in (1, 2):  # nobody writes
        sink.on_step(report(step, batch))
    sink.dropped(drawn(batch.groups[0], 1))
    sink.give_up()
    assert sink.lost == 2 * len(batch.samples) + len(batch.groups[0].samples)


async def test_dropped_draws_that_the_last_flush_stored_are_not_lost(
    store: Storage, tmp_path: Path, make_batch: Callable[..., Batch]
) -> None:
    sink = sink_of(store, tmp_path)
    async with running(sink):
        sink.dropped(make_batch(1).groups[0])
        await sink.flush()
    sink.give_up()
    assert sink.lost == 0


@pytest.mark.parametrize("error", [RuntimeError("nobody thought of it"), OSError(30, "read-only")])
async def test_whatever_storage_or_the_disk_raises_ends_nothing_and_costs_nothing(
    store: Storage, tmp_path: Path, make_batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    sink, batch = sink_of(store, tmp_path), make_batch(1)
    store.away, store.error = True, error
    async with running(sink):
        sink.on_step(report(1, batch))
        await sink.flush()
        store.away = False
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", _refuse_to_remove_what_waited)
            await sink.flush()
        sink.on_step(report(2, batch))
        await sink.flush()
    assert stored(store) == ["step-000001.parquet", "step-000002.parquet"]
    assert sink.lost == 0


_unlink = Path.unlink


def _refuse_to_remove_what_waited(path: Path, missing_ok: bool = False) -> None:
    if path.parent.name == "waiting":
        raise OSError(30, "Read-only file system")
    _unlink(path, missing_ok)


async def test_a_file_that_somebody_removed_does_not_hold_back_those_after_it(
    store: Storage, tmp_path: Path, make_batch: Callable[..., Batch]
) -> None:
    store.away = True
    sink, batch = sink_of(store, tmp_path), make_batch(1)
    async with running(sink):
        sink.on_step(report(1, batch))
        await sink.flush()
        next((tmp_path / "waiting").iterdir()).unlink()
        store.away = False
        sink.on_step(report(2, batch))
        await sink.flush()
    assert stored(store) == ["step-000002.parquet"]
    assert sink.lost == len(batch.samples)


async def test_a_second_report_on_a_step_leaves_its_samples_as_they_are(
    store: Storage, tmp_path: Path, make_batch: Callable[..., Batch]
) -> None:
    sink = sink_of(store, tmp_path)
    async with running(sink):
        sink.on_step(report(3, make_batch(1)))
        sink.on_step(report(3, None))
        await sink.flush()
    assert stored(store) == ["step-000003.parquet"]
    assert len(rows(store, tmp_path, "step-000003.parquet")) == 16


async def test_a_step_that_cannot_be_written_costs_its_samples_and_nothing_else(
    store: Storage, tmp_path: Path, make_batch: Callable[..., Batch], caplog: pytest.LogCaptureFixture
) -> None:
    sink = SampleSink(store, "short", 1, {}, tmp_path / "waiting")  # knows no prompt: raises what nobody thought of
    async with running(sink):
        sink.on_step(report(1, make_batch(1)))
        await sink.flush()
        sink._prompts = PROMPTS
        sink.on_step(report(2, make_batch(1)))
        await sink.flush()
    assert stored(store) == ["step-000002.parquet"]
    assert "step-000001.parquet cannot be written" in caplog.text
    assert sink.lost == 16


async def test_draws_that_were_dropped_are_stored_with_the_step_that_trains_their_place(
    store: Storage, tmp_path: Path, make_batch: Callable[..., Batch]
) -> None:
    sink, batch = sink_of(store, tmp_path), make_batch(1)
    first, *others = batch.groups
    sink.dropped(first)
    sink.dropped(drawn(first, 1))
    trained = (drawn(first, 2), *others)
    async with running(sink):
        sink.on_step(StepReport(1, 1, {}, {}, {}, trained))
        await sink.flush()
    assert stored(store) == ["step-000001.parquet"], "nothing is ahead"
    found = rows(store, tmp_path, "step-000001.parquet")
    of_place = [(r["draw"], r["dropped"]) for r in found if r["group_id"] == first.group_id and r["index"] == 0]
    assert of_place == [(0, True), (1, True), (2, False)]
    assert sum(r["dropped"] for r in found) == 2 * len(first.samples)
    assert len(found) == len(batch.samples) + 2 * len(first.samples)


async def test_draws_dropped_in_places_that_are_not_trained_yet_are_stored_by_each_flush(
    store: Storage, tmp_path: Path, make_batch: Callable[..., Batch]
) -> None:
    sink, batch = sink_of(store, tmp_path), make_batch(1)
    first = batch.groups[0]
    async with running(sink):
        sink.dropped(first)
        await sink.flush()  # a checkpoint: the next attempt may go on from the group that took its place
        ahead = rows(store, tmp_path, "ahead-a003.parquet")
        assert [(r["step"], r["dropped"]) for r in ahead] == [(1, True)] * len(first.samples)
        sink.on_step(StepReport(1, 1, {}, {}, {}, (drawn(first, 1),)))
        await sink.flush()
        assert rows(store, tmp_path, "ahead-a003.parquet") == [], "it is with its step now, and nowhere twice"
        assert len(rows(store, tmp_path, "step-000001.parquet")) == 2 * len(first.samples)
