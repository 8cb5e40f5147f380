"""What is removed from storage, and what stays: payloads go, manifests and whatever is needed do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_saving import run_to, save, state

from deepcoder_contracts.layout import MANIFEST
from deepcoder_contracts.manifest import RunIdentity
from deepcoder_contracts.stage import Storage
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, CheckpointFailed, StorageUnavailable
from deepcoder_trainer.checkpoint.reader import find_resume_point
from deepcoder_trainer.checkpoint.verify import walk_chain
from deepcoder_trainer.checkpoint.writer import CheckpointWriter


async def test_payloads_are_pruned_and_manifests_and_stage_ends_stay(
    make_config: Callable, make_learner: Callable, tmp_path: Path
) -> None:
    config = make_config(storage=Storage(uri=f"file://{tmp_path}/store", keep_last=2, keep_every=4))
    stage = tmp_path / "store/short"
    dead, barely_begun = "step-000003.a001", "step-000004.a001"
    under_way = {"step-000009.a002", "step-000002.a003"}  # by this attempt's twin, and by a later attempt
    for name in (dead, barely_begun, *under_way):
        file = "tmp0a1b2c3d.tmp" if name in (barely_begun, "step-000009.a002") else "rank-00000-000.safetensors"
        (stage / name / "learner").mkdir(parents=True)
        (stage / name / "learner" / file).write_bytes(b"half")
    config = config.model_copy(update={"ordinal": 2})
    writer = CheckpointWriter(config, make_learner(), workdir=tmp_path / "w")
    await writer.claim()
    for step in range(1, 9):
        await save(writer, state(step), metrics={}, final=step == 3)
    await writer.wait()
    folders = {p.name for p in stage.glob("step-*")}
    assert not folders & {dead, barely_begun}, "an unfinished upload of a dead attempt is removed"
    assert folders >= under_way, "an upload that may still be committed is not"
    whole = {name for name in folders if (stage / name / "state.json").exists()}
    assert whole == {f"step-{n:06d}.a002" for n in (3, 4, 7, 8)}
    assert all((stage / name / MANIFEST).exists() for name in folders - under_way)
    assert len(folders - under_way) == 8
    point = await find_resume_point(config, make_learner(), workdir=tmp_path / "r")
    assert point is not None
    assert point.manifest.step == 8


async def test_what_another_run_started_from_keeps_its_payload(
    make_config: Callable, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    config = make_config()
    learner = make_learner()
    writer = await run_to(config, learner, make_batch, tmp_path / "1", last=1)
    assert writer.latest is not None
    other = make_config(
        run=RunIdentity(namespace="local", name="other", uid="99999999-2222-3333-4444-555555555555"),
        storage=Storage(uri=f"file://{tmp_path}/other"),
        parent=writer.latest.ref,
    )
    assert await find_resume_point(other, learner, workdir=tmp_path / "2") is not None
    for step in (2, 3, 4, 5):
        await save(writer, state(step), metrics={})
    await writer.wait()
    payloads = [p.parent.name for p in sorted((tmp_path / "store/short").glob("step-*/state.json"))]
    assert payloads == ["step-000001.a001", "step-000004.a001", "step-000005.a001"]
    assert await find_resume_point(other, learner, workdir=tmp_path / "3") is not None


async def test_a_chain_stays_whole_when_another_run_has_tried_to_start_from_what_was_pruned(
    make_config: Callable, make_learner: Callable, tmp_path: Path
) -> None:
    writer = CheckpointWriter(make_config(), make_learner(), workdir=tmp_path / "w")
    await writer.claim()
    made: list[Any] = []
    for step in range(1, 5):
        await save(writer, state(step), metrics={})
        made.append(await writer.wait())
    other = make_config(
        run=RunIdentity(namespace="local", name="other", uid="99999999-2222-3333-4444-555555555555"),
        storage=Storage(uri=f"file://{tmp_path}/other"),
        parent=made[0].ref,
    )
    with pytest.raises(CheckpointDamaged, match="is missing"):
        await find_resume_point(other, None, workdir=tmp_path / "r")
    links = list(walk_chain(made[-1].ref.uri, deep=True))
    assert [(link.pruned, link.problems) for link in links] == [(False, ())] * 2 + [(True, ())] * 2
    assert (tmp_path / f"store/short/step-000001.a001/pin-{other.run.uid}.json").exists()


async def test_what_a_failed_save_has_uploaded_goes_with_the_next_commit(
    make_config: Callable, make_learner: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CheckpointWriter(make_config(), make_learner(), workdir=tmp_path / "w")
    await writer.claim()

    def full(*_: Any) -> Any:
        raise StorageUnavailable("the disk is full")

    with monkeypatch.context() as m:
        m.setattr(writer, "_upload_state", full)
        await save(writer, state(1), metrics={})
        await save(writer, state(2), metrics={})
        with pytest.raises(CheckpointFailed):
            await writer.wait()
    stage = tmp_path / "store/short"
    assert [p.name for p in sorted(stage.glob("step-*"))] == ["step-000001.a001", "step-000002.a001"]
    await save(writer, state(2), metrics={})
    await writer.wait()
    assert [p.name for p in stage.glob("step-*")] == ["step-000002.a001"]
    assert (stage / "step-000002.a001/MANIFEST.json").exists()


@pytest.mark.parametrize("manifest", ["{", '{"schemaVersion": 99}'], ids=["damaged", "of a newer release"])
async def test_an_old_manifest_that_cannot_be_read_ends_no_run_and_keeps_its_files(
    manifest: str, make_config: Callable, make_learner: Callable, tmp_path: Path
) -> None:
    config = make_config(storage=Storage(uri=f"file://{tmp_path}/store", keep_last=1))
    writer = CheckpointWriter(config, make_learner(), workdir=tmp_path / "w")
    await writer.claim()
    stage = tmp_path / "store/short"
    await save(writer, state(1), metrics={})
    await writer.wait()
    (stage / "step-000001.a001" / MANIFEST).write_text(manifest)
    for step in (2, 3):
        await save(writer, state(step), metrics={})
    assert (await writer.wait()).manifest.step == 3
    assert [p.parent.name for p in sorted(stage.glob("step-*/state.json"))] == ["step-000001.a001", "step-000003.a001"]
