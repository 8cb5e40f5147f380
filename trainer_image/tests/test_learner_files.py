"""A rank's files on their way: nothing stays behind, and what does not fit is told before it is loaded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lazy_modules import LazyModule

from deepcoder_contracts.manifest import Manifest, ManifestKind
from deepcoder_contracts.recipe import Precision
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint import transfer
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, CheckpointFailed, StorageUnavailable
from deepcoder_trainer.checkpoint.storage_file import FileStore
from deepcoder_trainer.learner.group import Deadlines, RayLearner

torch = LazyModule("torch")

PREFIX = "short/step-000001.a001"


def files_below(directory: Path) -> list[Path]:
    return [p for p in directory.rglob("*") if p.is_file()]


def manifest_of(config: StageConfig, files: list[Any]) -> Manifest:
    return Manifest(
        kind=ManifestKind.CHECKPOINT,
        run=config.run,
        stage="short",
        stage_index=0,
        ordinal=1,
        step=1,
        config_digest=config.provenance.config_digest,
        code_digest=config.provenance.config_digest,
        seed=0,
        world_size=1,
        created_at="2026-01-01T00:00:00Z",
        files=files,
    )


@pytest.mark.parametrize("what", ["checkpoint", "export"])
async def test_a_failed_upload_leaves_no_file_on_the_machine(
    what: str, make_learner: Callable, make_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, folder = make_learner(), tmp_path / "saved"
    await (learner.save if what == "checkpoint" else learner.save_pretrained)(str(folder))

    def dead(*_: Any) -> Any:
        raise StorageUnavailable("the line is dead")

    monkeypatch.setattr(FileStore, "put_file", dead)
    monkeypatch.setattr(transfer, "_BACKOFF_SECONDS", 0.0)
    with pytest.raises(StorageUnavailable):
        await learner.upload(str(folder), make_config().storage, PREFIX)
    assert files_below(folder) == []


async def test_a_state_that_does_not_fit_the_disk_is_removed_and_the_next_save_stands(
    make_learner: Callable, make_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepcoder_trainer.learner import dcp

    learner, config = make_learner(), make_config()

    def full(_tensors: Any, path: Path) -> None:
        path.write_bytes(b"cut short")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(dcp, "save_file", full)
        await learner.save(str(tmp_path / "1"))
        with pytest.raises(CheckpointFailed, match="No space left"):
            await learner.upload(str(tmp_path / "1"), config.storage, PREFIX)
    assert files_below(tmp_path / "1") == []
    await learner.save(str(tmp_path / "2"))
    assert await learner.upload(str(tmp_path / "2"), config.storage, PREFIX)


async def test_an_upload_puts_and_removes_the_files_of_its_own_save_though_a_newer_one_is_written(
    make_learner: Callable, make_config: Callable, tmp_path: Path
) -> None:
    learner, config = make_learner(), make_config()
    for name in ("1", "2"):
        await learner.save(str(tmp_path / name))
    first = await learner.upload(str(tmp_path / "1"), config.storage, "short/step-000001.a001")
    assert files_below(tmp_path / "1") == []
    second = await learner.upload(str(tmp_path / "2"), config.storage, "short/step-000002.a001")
    assert [f.path for f in first] == [f.path for f in second] != []
    assert files_below(tmp_path / "2") == []


async def test_an_upload_that_fails_on_one_rank_is_told_when_no_rank_uploads_any_more(make_config: Callable) -> None:
    may_end, ended = asyncio.Event(), False

    async def fail(*_: Any) -> Any:
        raise StorageUnavailable("the line is dead")

    async def slow(*_: Any) -> Any:
        nonlocal ended
        await may_end.wait()
        ended = True
        return []

    async def moved() -> int:
        return 0

    config = make_config(learners=2)
    calls = [{"upload": upload, "moved": moved} for upload in (fail, slow)]
    ranks = [SimpleNamespace(**{name: SimpleNamespace(remote=call) for name, call in each.items()}) for each in calls]
    learner = RayLearner(ranks, config.recipe, 64, Deadlines())
    upload = asyncio.create_task(learner.upload("/saved", config.storage, PREFIX))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not upload.done(), "the next save would find the slow rank at work on this one"
    may_end.set()
    with pytest.raises(StorageUnavailable):
        await upload
    assert ended


async def test_files_of_a_damaged_checkpoint_make_room_for_the_one_that_is_brought_instead(
    make_learner: Callable, make_config: Callable, tmp_path: Path
) -> None:
    learner, config = make_learner(), make_config()
    manifests = {}
    for step in (1, 2):
        await learner.save(str(tmp_path / "saved"))
        prefix = f"short/step-00000{step}.a001"
        manifests[prefix] = manifest_of(config, await learner.upload(str(tmp_path / "saved"), config.storage, prefix))
    older, newer = manifests
    (tmp_path / "store" / newer / "learner/rank-00000-001.safetensors").unlink()
    with pytest.raises(CheckpointDamaged, match="is missing"):
        await learner.download(str(tmp_path / "newer"), config.storage, newer, manifests[newer])
    assert files_below(tmp_path / "newer") != []
    await learner.download(str(tmp_path / "older"), config.storage, older, manifests[older])
    assert not (tmp_path / "newer").exists()
    await learner.load(str(tmp_path / "older"), optimizer=True)


async def test_scalars_lie_apart_from_what_is_large(make_learner: Callable, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    learner = make_learner()
    await learner.save(str(tmp_path))
    scalars = [load_file(p) for p in learner.rank.saved(tmp_path).files() if p.name.endswith("-001.safetensors")]
    assert [{v.dim() for v in tensors.values()} for tensors in scalars] == [{0}]


@pytest.mark.parametrize("layers", [1, 3], ids=["smaller", "larger"])
async def test_a_checkpoint_of_another_model_is_refused_before_it_is_loaded(
    layers: int, make_learner: Callable, make_config: Callable, tiny_model: Callable, tmp_path: Path
) -> None:
    other, config = make_learner(model=tiny_model(num_hidden_layers=layers)), make_config()
    await other.save(str(tmp_path / "saved"))
    files = await other.upload(str(tmp_path / "saved"), config.storage, PREFIX)
    with pytest.raises(CheckpointDamaged, match="does not hold this model"):
        await make_learner().download(str(tmp_path / "r"), config.storage, PREFIX, manifest_of(config, files))


async def test_a_file_that_metadata_names_and_the_manifest_does_not_is_damage(
    make_learner: Callable, make_config: Callable, tmp_path: Path
) -> None:
    learner, config = make_learner(), make_config()
    await learner.save(str(tmp_path / "saved"))
    files = await learner.upload(str(tmp_path / "saved"), config.storage, PREFIX)
    for lost, words in (("learner/rank-00000-000.safetensors", "does not name"), ("learner/metadata.json", "names no")):
        manifest = manifest_of(config, [f for f in files if f.path != lost])
        with pytest.raises(CheckpointDamaged, match=words):
            await learner.download(str(tmp_path / "r"), config.storage, PREFIX, manifest)


def test_a_model_without_generation_settings_is_exported_with_the_published_ones(tmp_path: Path) -> None:
    from deepcoder_trainer.learner.pretrained import write_pretrained

    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "config.json").write_text('{"eos_token_id": 3}')
    weights = [("lm_head.weight", torch.zeros(2, 2))]
    files = write_pretrained(weights, source, target, Precision.FLOAT32)
    settings = {"do_sample": True, "eos_token_id": 3, "temperature": 0.6, "top_p": 0.95}
    assert json.loads((target / "generation_config.json").read_text()) == settings
    assert target / "generation_config.json" in files
    (source / "generation_config.json").write_text('{"temperature": 1.0}')
    write_pretrained(weights, source, tmp_path / "again", Precision.FLOAT32)
    assert (tmp_path / "again/generation_config.json").read_text() == '{"temperature": 1.0}'
