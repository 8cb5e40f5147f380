"""Whose a prefix and an attempt are: another run, another configuration and a presumed dead attempt have no say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_saving import OTHER_DIGEST, run_to, save, state, store_of

from deepcoder_contracts.exit import ExitRecord
from deepcoder_contracts.manifest import Claim, RunIdentity
from deepcoder_trainer.checkpoint import transfer
from deepcoder_trainer.checkpoint.errors import ConfigMismatch, StorageUnavailable
from deepcoder_trainer.checkpoint.reader import find_resume_point
from deepcoder_trainer.checkpoint.storage import StoredObject
from deepcoder_trainer.checkpoint.storage_file import FileStore
from deepcoder_trainer.checkpoint.writer import CheckpointWriter
from deepcoder_trainer.errors import BadConfig


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


async def test_how_an_attempt_ended_is_written_beside_its_claim(make_config: Callable, tmp_path: Path) -> None:
    config = make_config()
    record = ExitRecord(code=75, reason="Drained", step=3)
    await CheckpointWriter(config, None, workdir=tmp_path).write_exit(record)
    assert ExitRecord.from_json(store_of(config).get_bytes("short/attempts/001/exit.json")) == record


async def test_storage_that_lets_a_conditional_put_replace_something_is_refused(
    make_config: Callable, tmp_path: Path
) -> None:
    """S3 servers that do not know If-None-Match ignore it: two attempts would both commit, and nobody would be told."""

    class Ignores(FileStore):
        def put_bytes(self, key: str, data: bytes, *, if_absent: bool = False) -> StoredObject:
            return super().put_bytes(key, data)

    store = Ignores(tmp_path / "run")
    for _attempt in range(2):
        with pytest.raises(BadConfig, match=r"ignores If-None-Match: \*, so two attempts could both commit") as e:
            await CheckpointWriter(make_config(), None, workdir=tmp_path, store=store).claim()
        assert e.value.field == "storage.endpoint"


async def test_storage_that_is_away_for_a_moment_costs_neither_the_attempt_nor_its_exit_record(
    make_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_BACKOFF_SECONDS", 0.001)
    failed: set[str] = set()

    class FailsOnce(FileStore):
        def put_bytes(self, key: str, data: bytes, **how: Any) -> StoredObject:
            if key not in failed:
                failed.add(key)
                raise StorageUnavailable(f"{key}: SlowDown")
            return super().put_bytes(key, data, **how)

    store = FailsOnce(tmp_path / "run")
    writer = CheckpointWriter(make_config(), None, workdir=tmp_path, store=store)
    await writer.claim()
    await writer.write_exit(ExitRecord(code=75, reason="Drained", step=3))
    names = ("RUN.json", "short/attempts/001/claim.json", "short/attempts/001/exit.json")
    assert failed == {*names}
    assert [o.key for o in store.list("")] == [*names]
