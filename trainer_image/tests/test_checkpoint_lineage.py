"""Writer and reader together, with a real learner rank: what is committed, what is resumed from, and what never is."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from checkpoint_saving import save

from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.exit import ExitRecord
from deepcoder_contracts.gate import GateRecord
from deepcoder_contracts.layout import MANIFEST
from deepcoder_contracts.manifest import Claim, Manifest, ManifestKind, ParentRef, RunIdentity
from deepcoder_contracts.stage import ModelSource, StageConfig, Storage
from deepcoder_trainer.__main__ import main
from deepcoder_trainer.checkpoint import transfer
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, CheckpointFailed, ConfigMismatch, StorageUnavailable
from deepcoder_trainer.checkpoint.reader import find_resume_point, read_manifest
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.checkpoint.state import PipelineState
from deepcoder_trainer.checkpoint.storage import ObjectStore, open_run_storage
from deepcoder_trainer.checkpoint.verify import walk_chain
from deepcoder_trainer.checkpoint.writer import CheckpointWriter
from deepcoder_trainer.evaluation.targets import newest_export

OTHER_DIGEST = "sha256:" + "b" * 64


def state(step: int, groups: tuple = ()) -> PipelineState:
    return PipelineState(
        step=step,
        total_steps=step,
        version=step,
        next_group_id=4 * step,
        groups=groups,
        history={"reward_mean": (0.5,) * step},
    )


async def run_to(
    config: StageConfig, learner: Any, make_batch: Callable, workdir: Path, last: int, first: int = 1
) -> CheckpointWriter:
    """Claim, then train and save each step; the writer, with everything committed."""
    writer = CheckpointWriter(config, learner, workdir=workdir)
    await writer.claim()
    point = await find_resume_point(config, learner, workdir=workdir)
    if point is not None:
        await learner.load(point.directory, optimizer=True)
        writer.parent = point.ref
    for step in range(first, last + 1):
        await learner.train(make_batch(step))
        await save(writer, state(step, make_batch(step + 1).groups), metrics={"reward_mean": 0.5})
    await writer.wait()
    return writer


def store_of(config: StageConfig) -> ObjectStore:
    return open_run_storage(config.storage)


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.s3)])
def config(request: pytest.FixtureRequest, make_config: Callable) -> StageConfig:
    if request.param == "file":
        return make_config()
    server = request.getfixturevalue("s3")
    storage = Storage(uri=f"s3://{server.bucket}/{uuid4()}", endpoint=server.endpoint, keep_last=2)
    return make_config(storage=storage)


def weights(learner: Any) -> dict[str, np.ndarray]:
    return {n: v.numpy().copy() for n, v in learner.rank.weights()}


async def test_an_interrupted_run_goes_on_to_equal_weights(
    config: StageConfig, make_learner: Callable, make_batch: Callable, make_config: Callable, tmp_path: Path
) -> None:
    straight = make_learner()
    for step in range(1, 5):
        await straight.train(make_batch(step))
    await run_to(config, make_learner(), make_batch, tmp_path / "1", last=2)
    again = config.model_copy(update={"ordinal": 2})
    second = make_learner()
    writer = await run_to(again, second, make_batch, tmp_path / "2", last=4, first=3)
    for name, value in weights(straight).items():
        np.testing.assert_array_equal(value, weights(second)[name], err_msg=name)
    assert writer.latest is not None
    links = list(walk_chain(writer.latest.ref.uri, deep=True, endpoint=config.storage.endpoint))
    assert [link.manifest.step for link in links if link.manifest] == [4, 3, 2, 1]
    assert [link.manifest.ordinal for link in links if link.manifest] == [2, 2, 1, 1]
    assert [link.pruned for link in links] == [False, False, True, True]
    assert [p for link in links for p in link.problems] == []


async def test_a_checkpoint_says_what_made_it_and_the_finished_batch_is_in_it(
    config: StageConfig, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    learner = make_learner()
    writer = CheckpointWriter(config, learner, workdir=tmp_path / "w", dataset_digest=OTHER_DIGEST)
    await writer.claim()
    gate = GateRecord(met=True, values={"step": 7}, window={"step": 1})
    await save(writer, state(7, make_batch(8).groups), metrics={"loss": 0.25}, final=True, gate=gate)
    committed = await writer.wait()
    assert committed is not None
    stored, digest = read_manifest(store_of(config), "short/step-000007.a001")
    assert committed.ref == ParentRef(uri=f"{config.storage.uri}/short/step-000007.a001", digest=digest)
    assert stored == committed.manifest
    assert (stored.kind, stored.step, stored.final, stored.gate) == (ManifestKind.CHECKPOINT, 7, True, gate)
    assert (stored.dataset_digest, stored.metrics, stored.world_size) == (OTHER_DIGEST, {"loss": 0.25}, 1)
    assert stored.parent is None
    assert [f.path for f in stored.files] == [
        "learner/metadata.json",
        "learner/rank-00000-000.safetensors",
        "learner/rank-00000-001.safetensors",
        "pipeline.safetensors",
        "state.json",
    ]
    point = await find_resume_point(config, learner, workdir=tmp_path / "r")
    assert point is not None
    assert point.own
    assert point.state.history == {"reward_mean": (0.5,) * 7}
    assert [s.outcome for g in point.state.groups for s in g.samples] == [s.outcome for s in make_batch(8).samples]
    assert not any((tmp_path / "w").iterdir()), "local copies are removed once they are stored"


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a learner file is missing": lambda d: (d / "learner/rank-00000-000.safetensors").unlink(),
    "a learner file is cut": lambda d: cut(d / "learner/rank-00000-000.safetensors"),
    "a learner file is altered": lambda d: flip(d / "learner/rank-00000-000.safetensors"),
    "the state is altered": lambda d: flip(d / "state.json"),
    "the samples are missing": lambda d: (d / "pipeline.safetensors").unlink(),
    "the manifest is cut": lambda d: cut(d / MANIFEST),
    "the manifest never came": lambda d: (d / MANIFEST).unlink(),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


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


async def test_a_prefix_of_another_run_or_configuration_is_refused(make_config: Callable, tmp_path: Path) -> None:
    await CheckpointWriter(make_config(), None, workdir=tmp_path).claim()
    other_run = RunIdentity(namespace="local", name="demo", uid="99999999-2222-3333-4444-555555555555")
    with pytest.raises(ConfigMismatch, match="belongs to run local/demo") as e:
        await CheckpointWriter(make_config(run=other_run), None, workdir=tmp_path).claim()
    assert e.value.field == "storage.uri"
    with pytest.raises(ConfigMismatch, match="configuration never changes") as e:
        await CheckpointWriter(make_config(provenance={"config_digest": OTHER_DIGEST}), None, workdir=tmp_path).claim()
    assert e.value.field == "provenance.configDigest"


async def test_a_checkpoint_of_another_configuration_is_never_resumed_from(
    make_config: Callable, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    await run_to(make_config(), make_learner(), make_batch, tmp_path / "w", last=1)
    with pytest.raises(ConfigMismatch, match=r"start a new run with spec\.from"):
        await find_resume_point(
            make_config(provenance={"config_digest": OTHER_DIGEST}), make_learner(), workdir=tmp_path / "r"
        )


async def test_a_manifest_committed_after_a_higher_claim_is_ignored(
    make_config: Callable, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    old, new = make_config(), make_config(ordinal=2)
    await run_to(old, make_learner(), make_batch, tmp_path / "1", last=1)
    await CheckpointWriter(new, None, workdir=tmp_path / "x").claim()
    zombie = CheckpointWriter(old, make_learner(), workdir=tmp_path / "z")
    await save(zombie, state(2), metrics={})
    await zombie.wait()
    point = await find_resume_point(new, make_learner(), workdir=tmp_path / "r")
    assert point is not None
    assert point.manifest.step == 1


async def test_an_attempt_may_claim_again_after_a_restart(make_config: Callable, tmp_path: Path) -> None:
    config = make_config()
    await CheckpointWriter(config, None, workdir=tmp_path).claim()
    first = store_of(config).get_bytes("short/attempts/001/claim.json")
    await CheckpointWriter(config, None, workdir=tmp_path).claim()
    assert store_of(config).get_bytes("short/attempts/001/claim.json") == first
    assert Claim.from_json(first).ordinal == 1


async def test_a_step_is_committed_once(make_config: Callable, make_learner: Callable, tmp_path: Path) -> None:
    for expectation in (None, pytest.raises(CheckpointFailed, match="running twice")):
        writer = CheckpointWriter(make_config(), make_learner(), workdir=tmp_path / "w")
        await save(writer, state(1), metrics={})
        if expectation is None:
            await writer.wait()
        else:
            with expectation:
                await writer.wait()


async def test_payloads_are_pruned_and_manifests_and_stage_ends_stay(
    make_config: Callable, make_learner: Callable, tmp_path: Path
) -> None:
    config = make_config(storage=Storage(uri=f"file://{tmp_path}/store", keep_last=2, keep_every=4))
    dead = tmp_path / "store/short/step-000003.a001/learner"
    dead.mkdir(parents=True)
    (dead / "rank-00000-000.safetensors").write_bytes(b"half")
    config = config.model_copy(update={"ordinal": 2})
    writer = CheckpointWriter(config, make_learner(), workdir=tmp_path / "w")
    await writer.claim()
    for step in range(1, 9):
        await save(writer, state(step), metrics={}, final=step == 3)
    await writer.wait()
    folders = {p.name: len(list(p.rglob("*.*"))) for p in (tmp_path / "store/short").glob("step-*")}
    assert "step-000003.a001" not in folders, "an unfinished upload of a dead attempt is removed"
    whole = {name for name in folders if (tmp_path / "store/short" / name / "state.json").exists()}
    assert whole == {f"step-{n:06d}.a002" for n in (3, 4, 7, 8)}
    assert all((tmp_path / "store/short" / name / MANIFEST).exists() for name in folders)
    assert len(folders) == 8
    point = await find_resume_point(config, make_learner(), workdir=tmp_path / "r")
    assert point is not None
    assert point.manifest.step == 8


async def test_a_stage_without_checkpoints_starts_from_its_parent(
    config: StageConfig, make_config: Callable, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    first = make_learner()
    writer = await run_to(config, first, make_batch, tmp_path / "1", last=2)
    assert writer.latest is not None
    parent = writer.latest.ref
    long = make_config(storage=config.storage, stage="long", index=1, parent=parent)
    second = make_learner()
    point = await find_resume_point(long, second, workdir=tmp_path / "2")
    assert point is not None
    assert (point.own, point.ref, point.state.total_steps) == (False, parent, 2)
    await second.load(point.directory, optimizer=False)
    for name, value in weights(first).items():
        np.testing.assert_array_equal(value, weights(second)[name])
    wrong = make_config(
        storage=config.storage, stage="long", index=1, parent=ParentRef(uri=parent.uri, digest=OTHER_DIGEST)
    )
    with pytest.raises(ConfigMismatch, match="not the checkpoint that was meant") as e:
        await find_resume_point(wrong, second, workdir=tmp_path / "3")
    assert e.value.field == "parent.digest"


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


async def test_an_export_is_served_by_transformers_and_its_chain_leads_to_the_checkpoint(
    config: StageConfig, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    learner = make_learner()
    writer = await run_to(config, learner, make_batch, tmp_path / "w", last=2)
    export = await writer.export({"eval/x/pass_at_1": 0.5})
    assert (await writer.export({})).ref == export.ref, "a second export finds the first"
    assert export.manifest.parent == writer.latest.ref
    assert export.ref.uri.endswith("short/export/step-000002.a001")
    endpoint = config.storage.endpoint
    links = list(walk_chain(export.ref.uri, deep=True, endpoint=endpoint))
    assert [link.manifest.kind.value for link in links if link.manifest] == ["Export", "Checkpoint", "Checkpoint"]
    assert not any(link.problems for link in links)
    sources = Sources(cache=tmp_path / "cache", endpoint=endpoint)
    directory = sources.model(ModelSource(uri=export.ref.uri))
    assert sources.model(ModelSource(uri=export.ref.uri)) == directory
    model = AutoModelForCausalLM.from_pretrained(directory)
    for name, value in learner.rank.weights():
        assert torch.equal(model.get_parameter(name), value)


async def test_a_presumed_dead_attempt_that_reaches_its_end_does_not_keep_the_next_from_exporting(
    make_config: Callable, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    old, new = make_config(), make_config(ordinal=2)
    store = store_of(new)
    zombie = await run_to(old, make_learner(), make_batch, tmp_path / "1", last=1)
    successor = CheckpointWriter(new, make_learner(), workdir=tmp_path / "2", parent=zombie.parent)
    await successor.claim()
    await save(zombie, state(2), metrics={}, final=True)
    late = await zombie.export({})
    assert newest_export("short", store) is None, "it was committed after a later attempt had begun"
    await save(successor, state(2), metrics={}, final=True)
    export = await successor.export({})
    assert export.ref != late.ref
    assert newest_export("short", store) == "short/export/step-000002.a002"
    third = CheckpointWriter(make_config(ordinal=3), make_learner(), workdir=tmp_path / "3")
    await third.claim()
    third.latest = successor.latest
    assert (await third.export({})).ref == export.ref, "an export of the same checkpoint is taken as it is"


async def test_an_altered_export_is_not_evaluated(
    make_config: Callable, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    writer = await run_to(make_config(), make_learner(), make_batch, tmp_path / "w", last=1)
    export = await writer.export({})
    flip(tmp_path / "store/short/export/step-000001.a001/model.safetensors")
    with pytest.raises(CheckpointDamaged, match=r"model\.safetensors has sha256"):
        Sources(cache=tmp_path / "cache").model(ModelSource(uri=export.ref.uri))


async def test_a_chain_that_was_tampered_with_is_found(
    make_config: Callable, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    writer = await run_to(make_config(), make_learner(), make_batch, tmp_path / "w", last=2)
    assert writer.latest is not None
    flip(tmp_path / "store/short/step-000002.a001/learner/rank-00000-000.safetensors")
    shallow = list(walk_chain(writer.latest.ref.uri, deep=False))
    assert not any(link.problems for link in shallow), "same size: only deep reads it"
    [problem] = next(walk_chain(writer.latest.ref.uri, deep=True)).problems
    assert "rank-00000-000.safetensors has sha256" in problem
    first = tmp_path / "store/short/step-000001.a001" / MANIFEST
    document = json.loads(first.read_text())
    first.write_text(json.dumps(document | {"metrics": {"reward_mean": 1.0}}))
    [_, link] = walk_chain(writer.latest.ref.uri, deep=False)
    assert link.problems[0].startswith("its child names digest")


async def test_how_an_attempt_ended_is_written_beside_its_claim(make_config: Callable, tmp_path: Path) -> None:
    config = make_config()
    record = ExitRecord(code=75, reason="Drained", step=3)
    await CheckpointWriter(config, None, workdir=tmp_path).write_exit(record)
    assert ExitRecord.from_json(store_of(config).get_bytes("short/attempts/001/exit.json")) == record


async def test_the_digest_of_a_manifest_is_that_of_its_stored_bytes(
    make_config: Callable, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    writer = await run_to(make_config(), make_learner(), make_batch, tmp_path / "w", last=1)
    assert writer.latest is not None
    data = (tmp_path / "store/short/step-000001.a001" / MANIFEST).read_bytes()
    assert writer.latest.ref.digest == sha256_digest(data)
    assert Manifest.from_json(data) == writer.latest.manifest


async def test_the_command_line_prints_a_chain_and_fails_on_a_broken_one(
    make_config: Callable,
    make_learner: Callable,
    make_batch: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    writer = await run_to(make_config(), make_learner(), make_batch, tmp_path / "w", last=2)
    assert writer.latest is not None
    assert main(["verify", writer.latest.ref.uri, "--deep"]) == 0
    out = capsys.readouterr().out
    assert "short step 2 (attempt 1)" in out
    assert "short step 1 (attempt 1)" in out
    assert "the chain is whole" in out
    (tmp_path / "store/short/step-000001.a001/state.json").unlink()
    assert main(["verify", writer.latest.ref.uri]) == 1
    assert "state.json is missing" in capsys.readouterr().out
    assert main(["verify", "ftp://x"]) == 64
