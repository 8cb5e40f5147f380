"""Copying weights aside and committing them are apart: uploads start first, and what must be stored before is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoint_saving import save
from lazy_modules import LazyModule

from deepcoder_contracts.manifest import FileEntry
from deepcoder_contracts.stage import StageConfig, Storage
from deepcoder_trainer.checkpoint import transfer
from deepcoder_trainer.checkpoint import writer as writing
from deepcoder_trainer.checkpoint.errors import CheckpointFailed, StorageDenied, StorageUnavailable
from deepcoder_trainer.checkpoint.opening import open_run_storage
from deepcoder_trainer.checkpoint.state import ARRAYS, PipelineState
from deepcoder_trainer.checkpoint.storage import StoredObject
from deepcoder_trainer.checkpoint.writer import CheckpointWriter
from deepcoder_trainer.runtime_info import RuntimeInfo

torch = LazyModule("torch")

MANIFEST = "short/step-000003.a001/MANIFEST.json"
STATE = PipelineState(3, 3, 3, 12)


class SlowLearner:
    """Uploads nothing, when the test says so."""

    def __init__(self) -> None:
        self.may_upload = asyncio.Event()
        self.uploads = 0
        self.failing = False

    async def save(self, directory: str) -> None:
        Path(directory).mkdir(parents=True)

    async def upload(self, directory: str, storage: Storage, prefix: str) -> list[FileEntry]:
        self.uploads += 1
        await self.may_upload.wait()
        if self.failing:
            raise StorageUnavailable("no route")
        return []


async def test_weights_are_on_their_way_before_the_rest_of_the_state_is_known(
    make_config: Callable[..., StageConfig], tmp_path: Path
) -> None:
    config, learner = make_config(), SlowLearner()
    runtime_info = RuntimeInfo()
    writer = CheckpointWriter(config, learner, workdir=tmp_path / "w", runtime_info=runtime_info)  # type: ignore[arg-type]
    store = open_run_storage(config.storage)
    stored: list[bool] = []

    async def look() -> None:
        stored.append(store.head(MANIFEST) is not None)

    writer.before_commit = look
    await writer.copy(3)
    await asyncio.sleep(0)
    assert learner.uploads == 1
    runtime_info.image_id, runtime_info.accelerator = "registry/trainer@sha256:1", "NVIDIA H100"
    await writer.commit(STATE, metrics={}, final=True)
    learner.may_upload.set()
    committed = await writer.wait()
    assert committed is not None
    assert (committed.manifest.step, committed.manifest.final) == (3, True)
    assert committed.manifest.versions["torch"] == torch.__version__, "what made the weights is told"
    made = committed.manifest
    assert (made.image_id, made.accelerator) == ("registry/trainer@sha256:1", "NVIDIA H100"), "told since it began"
    assert set(committed.manifest.versions) >= {"python", "deepcoder-trainer"}
    assert stored == [False], "what is to be stored before the commit is asked for once, and before"
    assert store.head(MANIFEST) is not None
    assert writer.times is not None


async def test_training_that_waits_for_the_save_before_stands_still(
    make_config: Callable[..., StageConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(seconds=7.0)
    monkeypatch.setattr(writing, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    learner = SlowLearner()

    def uploaded_at_last() -> None:
        clock.seconds += 100
        learner.may_upload.set()

    writer = CheckpointWriter(make_config(), learner, workdir=tmp_path / "w")  # type: ignore[arg-type]
    await save(writer, STATE, metrics={})
    asyncio.get_running_loop().call_later(0.3, uploaded_at_last)
    await save(writer, PipelineState(4, 4, 4, 16), metrics={})
    await writer.wait()
    assert writer.times is not None
    assert (writer.times.waited, writer.times.copy, writer.times.stall) == (100, 0, 100)


async def test_an_upload_that_failed_before_the_commit_is_the_commits_failure_and_can_be_done_again(
    make_config: Callable[..., StageConfig], tmp_path: Path
) -> None:
    learner = SlowLearner()
    writer = CheckpointWriter(make_config(), learner, workdir=tmp_path / "w")  # type: ignore[arg-type]
    learner.failing = True
    learner.may_upload.set()
    await writer.copy(3)
    await asyncio.sleep(0.01)
    await writer.commit(STATE, metrics={})
    with pytest.raises(CheckpointFailed, match="no route"):
        await writer.wait()
    learner.failing = False
    await save(writer, STATE, metrics={})
    committed = await writer.wait()
    assert committed is not None
    assert committed.manifest.step == 3


async def test_a_save_that_fails_in_the_background_is_told_then_and_not_at_the_next_one(
    make_config: Callable[..., StageConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learner = SlowLearner()
    learner.failing = True
    writer = CheckpointWriter(make_config(), learner, workdir=tmp_path / "w")  # type: ignore[arg-type]
    await save(writer, STATE, metrics={})
    learner.may_upload.set()
    async with asyncio.timeout(30):
        while "checkpoint failed (step 3, 1 in a row): no route" not in caplog.text:
            await asyncio.sleep(0.01)
    assert writer.failures == 1
    with pytest.raises(CheckpointFailed, match="1 in a row"):
        await writer.wait()


async def test_a_disk_that_does_not_take_the_state_costs_one_save_and_not_the_training(
    make_config: Callable[..., StageConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learner = SlowLearner()
    learner.may_upload.set()
    writer = CheckpointWriter(make_config(), learner, workdir=tmp_path / "w")  # type: ignore[arg-type]
    await writer.copy(3)
    [folder] = (tmp_path / "w").iterdir()
    (folder / ARRAYS).mkdir()  # no file can be written there, as on a full disk
    await writer.commit(STATE, metrics={})
    await writer.copy(3)
    assert "training continues" in caplog.text
    await writer.commit(STATE, metrics={})
    assert await writer.wait() is not None


async def test_a_save_that_storage_denies_is_told_at_the_next_one_and_not_only_at_the_third(
    make_config: Callable[..., StageConfig], tmp_path: Path
) -> None:
    async def denied(*_: object) -> list[FileEntry]:
        raise StorageDenied("AccessDenied")

    learner = SlowLearner()
    learner.upload = denied  # type: ignore[method-assign]
    writer = CheckpointWriter(make_config(), learner, workdir=tmp_path / "w")  # type: ignore[arg-type]
    await save(writer, STATE, metrics={})
    with pytest.raises(CheckpointFailed, match="AccessDenied"):
        await writer.copy(4)


async def test_storage_that_is_away_for_a_moment_when_the_manifest_is_put_costs_no_second_upload(
    make_config: Callable[..., StageConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it was there, and its answer was lost: what is put then is found."""
    monkeypatch.setattr(transfer, "_BACKOFF_SECONDS", 0)
    learner, config = SlowLearner(), make_config()
    learner.may_upload.set()
    store = open_run_storage(config.storage)
    put, answers = store.put_bytes, iter([False, True])

    def put_bytes(key: str, data: bytes, *, if_absent: bool = False) -> StoredObject:
        if key == MANIFEST and (arrives := next(answers, None)) is not None:
            if arrives:
                put(key, data, if_absent=if_absent)
            raise StorageUnavailable("no route")
        return put(key, data, if_absent=if_absent)

    store.put_bytes = put_bytes  # type: ignore[method-assign]
    writer = CheckpointWriter(config, learner, workdir=tmp_path / "w", store=store)  # type: ignore[arg-type]
    await save(writer, STATE, metrics={})
    assert await writer.wait() is not None
    assert (learner.uploads, writer.failures) == (1, 0)


async def test_closing_ends_an_upload_that_nobody_committed(
    make_config: Callable[..., StageConfig], tmp_path: Path
) -> None:
    learner = SlowLearner()
    ended: list[bool] = []
    original = learner.upload

    async def upload(directory: str, storage: Storage, prefix: str) -> list[FileEntry]:
        try:
            return await original(directory, storage, prefix)
        finally:
            ended.append(True)

    learner.upload = upload  # type: ignore[method-assign]
    writer = CheckpointWriter(make_config(), learner, workdir=tmp_path / "w")  # type: ignore[arg-type]
    await writer.close()
    await writer.copy(3)
    await asyncio.sleep(0)
    await writer.close()
    assert ended == [True]
    assert list((tmp_path / "w").iterdir()) == []


async def test_closing_hears_of_an_upload_that_failed_before_anybody_committed_it(
    make_config: Callable[..., StageConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learner = SlowLearner()
    learner.failing = True
    learner.may_upload.set()
    writer = CheckpointWriter(make_config(), learner, workdir=tmp_path / "w")  # type: ignore[arg-type]
    await writer.copy(3)
    await asyncio.sleep(0.01)
    await writer.close()
    assert "no route" in caplog.text
