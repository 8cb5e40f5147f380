"""Saves that fail, and checkpoints that are found damaged: the one before stays in force, and the log says why."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from checkpoint_saving import cut, flip, run_to, save, state, store_of

from deepcoder_contracts.layout import MANIFEST
from deepcoder_contracts.stage import Storage
from deepcoder_trainer.checkpoint import transfer
from deepcoder_trainer.checkpoint.errors import CheckpointFailed, StorageUnavailable
from deepcoder_trainer.checkpoint.reader import find_resume_point
from deepcoder_trainer.checkpoint.writer import CheckpointWriter

DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a learner file is missing": lambda d: (d / "learner/rank-00000-000.safetensors").unlink(),
    "a learner file is cut": lambda d: cut(d / "learner/rank-00000-000.safetensors"),
    "a learner file is altered": lambda d: flip(d / "learner/rank-00000-000.safetensors"),
    "the state is altered": lambda d: flip(d / "state.json"),
    "the samples are missing": lambda d: (d / "pipeline.safetensors").unlink(),
    "the manifest is cut": lambda d: cut(d / MANIFEST),
    "the manifest never came": lambda d: (d / MANIFEST).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
async def test_a_damaged_checkpoint_gives_way_to_the_one_before_it_and_the_log_says_why(
    damage: Callable[[Path], Any],
    make_config: Callable,
    make_learner: Callable,
    make_batch: Callable,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = make_config()
    await run_to(config, make_learner(), make_batch, tmp_path / "w", last=2)
    damage(tmp_path / "store/short/step-000002.a001")
    with caplog.at_level(logging.INFO):
        point = await find_resume_point(config, make_learner(), workdir=tmp_path / "r")
    assert point is not None
    assert point.manifest.step == 1
    if (tmp_path / "store/short/step-000002.a001" / MANIFEST).exists():
        assert "step-000002.a001 is not used" in caplog.text


@pytest.mark.s3
async def test_an_upload_that_breaks_half_way_leaves_the_checkpoint_before_it_in_force(
    s3: Any,
    make_config: Callable,
    make_learner: Callable,
    make_batch: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer, "_BACKOFF_SECONDS", 0.0)
    config = make_config(storage=Storage(uri=f"s3://{s3.bucket}/{uuid4()}", endpoint=s3.endpoint))
    learner = make_learner()
    writer = await run_to(config, learner, make_batch, tmp_path / "w", last=1)
    put_file = writer._store.put_file

    def break_on_state(key: str, path: Path) -> Any:
        if key.endswith("state.json"):
            raise StorageUnavailable("the line is dead")
        return put_file(key, path)

    writer._store.put_file = break_on_state  # type: ignore[method-assign]
    await save(writer, state(2), metrics={})
    with pytest.raises(CheckpointFailed, match="the line is dead"):
        await writer.wait()
    keys = [o.key for o in store_of(config).list("short/step-000002.a001/")]
    assert "short/step-000002.a001/learner/metadata.json" in keys
    assert f"short/step-000002.a001/{MANIFEST}" not in keys
    point = await find_resume_point(config, learner, workdir=tmp_path / "r")
    assert point is not None
    assert point.manifest.step == 1


async def test_a_failed_save_does_not_stop_training_until_it_is_the_third_in_a_row(
    make_config: Callable, make_learner: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CheckpointWriter(make_config(), make_learner(), workdir=tmp_path / "w")
    await writer.claim()

    async def dead(directory: str, *_: Any) -> Any:
        writer._learner.rank.saved(Path(directory)).files()  # as a real upload does, which begins when all is written
        raise StorageUnavailable("storage is away")

    with monkeypatch.context() as m:
        m.setattr(writer._learner, "upload", dead)
        await save(writer, state(1), metrics={})
        await save(writer, state(2), metrics={})
        assert writer.failures == 1
        with pytest.raises(CheckpointFailed, match="2 in a row"):
            await writer.wait()
    await save(writer, state(3), metrics={})
    assert writer.failures == 2
    await writer.wait()
    assert writer.failures == 0
    assert writer.latest is not None
    assert writer.latest.manifest.step == 3
    monkeypatch.setattr(writer._learner, "upload", dead)
    for step in (4, 5, 6):
        await save(writer, state(step), metrics={})
    with pytest.raises(CheckpointFailed, match="3 in a row"):
        await save(writer, state(7), metrics={})
