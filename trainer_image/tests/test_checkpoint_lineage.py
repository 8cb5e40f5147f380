"""Writer and reader together, with a real learner rank: what is committed and resumed from, and the chain between."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoint_saving import OTHER_DIGEST, flip, run_to, save, state, store_of, weights
from export_world import manifest

from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.exit import ExitCode
from deepcoder_contracts.gate import GateRecord
from deepcoder_contracts.layout import MANIFEST
from deepcoder_contracts.manifest import FileEntry, Manifest, ManifestKind, ParentRef
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.__main__ import main
from deepcoder_trainer.checkpoint.errors import CheckpointFailed, ConfigMismatch
from deepcoder_trainer.checkpoint.inputs import Inputs
from deepcoder_trainer.checkpoint.reader import find_resume_point, read_manifest
from deepcoder_trainer.checkpoint.verify import walk_chain
from deepcoder_trainer.checkpoint.writer import CheckpointWriter
from deepcoder_trainer.running import exit_records


async def test_an_interrupted_run_goes_on_to_equal_weights(
    stored_config: StageConfig, make_learner: Callable, make_batch: Callable, make_config: Callable, tmp_path: Path
) -> None:
    straight = make_learner()
    for step in range(1, 5):
        await straight.train(make_batch(step))
    await run_to(stored_config, make_learner(), make_batch, tmp_path / "1", last=2)
    again = stored_config.model_copy(update={"ordinal": 2})
    second = make_learner()
    writer = await run_to(again, second, make_batch, tmp_path / "2", last=4, first=3)
    for name, value in weights(straight).items():
        np.testing.assert_array_equal(value, weights(second)[name], err_msg=name)
    assert writer.latest is not None
    links = list(walk_chain(writer.latest.ref.uri, deep=True, endpoint=stored_config.storage.endpoint))
    assert [link.manifest.step for link in links if link.manifest] == [4, 3, 2, 1]
    assert [link.manifest.ordinal for link in links if link.manifest] == [2, 2, 1, 1]
    assert [link.pruned for link in links] == [False, False, True, True]
    assert [p for link in links for p in link.problems] == []


async def test_a_checkpoint_says_what_made_it_and_the_finished_batch_is_in_it(
    stored_config: StageConfig, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    learner = make_learner()
    writer = CheckpointWriter(stored_config, learner, workdir=tmp_path / "w", inputs=Inputs(OTHER_DIGEST))
    await writer.claim()
    gate = GateRecord(met=True, values={"step": 7}, window={"step": 1})
    await save(writer, state(7, make_batch(8).groups), metrics={"loss": 0.25}, final=True, gate=gate)
    committed = await writer.wait()
    assert committed is not None
    stored, digest = read_manifest(store_of(stored_config), "short/step-000007.a001")
    assert committed.ref == ParentRef(uri=f"{stored_config.storage.uri}/short/step-000007.a001", digest=digest)
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
    point = await find_resume_point(stored_config, learner, workdir=tmp_path / "r")
    assert point is not None
    assert point.own
    assert point.state.history == {"reward_mean": (0.5,) * 7}
    assert [s.outcome for g in point.state.groups for s in g.samples] == [s.outcome for s in make_batch(8).samples]
    assert not any((tmp_path / "w").iterdir()), "local copies are removed once they are stored"


async def test_a_stage_without_checkpoints_starts_from_its_parent(
    stored_config: StageConfig, make_config: Callable, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    first = make_learner()
    writer = await run_to(stored_config, first, make_batch, tmp_path / "1", last=2)
    assert writer.latest is not None
    parent = writer.latest.ref
    long = make_config(storage=stored_config.storage, stage="long", index=1, parent=parent)
    second = make_learner()
    point = await find_resume_point(long, second, workdir=tmp_path / "2")
    assert point is not None
    assert (point.own, point.ref, point.state.total_steps) == (False, parent, 2)
    await second.load(point.directory, optimizer=False)
    for name, value in weights(first).items():
        np.testing.assert_array_equal(value, weights(second)[name])
    wrong = make_config(
        storage=stored_config.storage, stage="long", index=1, parent=ParentRef(uri=parent.uri, digest=OTHER_DIGEST)
    )
    with pytest.raises(ConfigMismatch, match="not the checkpoint that was meant") as e:
        await find_resume_point(wrong, second, workdir=tmp_path / "3")
    assert e.value.field == "parent.digest"


async def test_a_parent_of_another_model_is_a_mistake_in_the_configuration_and_not_tried_again(
    stored_config: StageConfig,
    make_config: Callable,
    make_learner: Callable,
    make_batch: Callable,
    tiny_model: Callable,
    tmp_path: Path,
) -> None:
    writer = await run_to(stored_config, make_learner(), make_batch, tmp_path / "1", last=1)
    assert writer.latest is not None
    long = make_config(storage=stored_config.storage, stage="long", index=1, parent=writer.latest.ref)
    with pytest.raises(ConfigMismatch, match=r"is a checkpoint of .*, and not of") as e:
        await find_resume_point(long, make_learner(model=tiny_model(num_hidden_layers=1)), workdir=tmp_path / "2")
    record = exit_records.failed(e.value, 0)
    assert (record.code, record.reason, record.field) == (ExitCode.BAD_CONFIG, "BadConfig", "parent.uri")


async def test_a_step_is_committed_once(make_config: Callable, make_learner: Callable, tmp_path: Path) -> None:
    for expectation in (None, pytest.raises(CheckpointFailed, match="running twice")):
        writer = CheckpointWriter(make_config(), make_learner(), workdir=tmp_path / "w")
        await save(writer, state(1), metrics={})
        if expectation is None:
            await writer.wait()
        else:
            with expectation:
                await writer.wait()


async def test_the_digest_of_a_manifest_is_that_of_its_stored_bytes(
    make_config: Callable, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    writer = await run_to(make_config(), make_learner(), make_batch, tmp_path / "w", last=1)
    assert writer.latest is not None
    data = (tmp_path / "store/short/step-000001.a001" / MANIFEST).read_bytes()
    assert writer.latest.ref.digest == sha256_digest(data)
    assert Manifest.from_json(data) == writer.latest.manifest


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
    assert link.problems[0].endswith("as its child says")


async def test_a_manifest_that_cannot_come_from_its_parent_is_found_though_all_digests_fit(
    make_config: Callable, make_learner: Callable, make_batch: Callable, tmp_path: Path
) -> None:
    writer = await run_to(make_config(), make_learner(), make_batch, tmp_path / "w", last=2)
    assert writer.latest is not None
    newest = tmp_path / "store/short/step-000002.a001" / MANIFEST
    newest.write_text(json.dumps(json.loads(newest.read_text()) | {"codeDigest": OTHER_DIGEST}))
    [_, parent] = walk_chain(writer.latest.ref.uri, deep=False)
    [problem] = parent.problems
    assert problem.startswith(f"what comes from it has code digest {OTHER_DIGEST}, its parent of the same attempt")


def test_a_manifest_that_names_a_file_outside_of_its_folder_is_a_broken_link_of_the_chain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").write_bytes(b"x")
    leaving = FileEntry(path="learner/../../elsewhere", size=1, sha256=hashlib.sha256(b"x").hexdigest())
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    forged = manifest(kind=ManifestKind.CHECKPOINT, files=[leaving], step=2, total_steps=2)
    (folder / MANIFEST).write_bytes(forged.to_json())
    assert main(["verify", f"file://{folder}"]) == 1
    assert "learner/../../elsewhere leaves its folder" in capsys.readouterr().out


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
