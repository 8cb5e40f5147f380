"""What is fetched is the export that was meant, file by file, and never mixed with what lay there before."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import export_world
import pytest
from checkpoint_saving import flip

from deepcoder_trainer.__main__ import main
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.verify import walk_chain


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """An export of a run below tmp_path/run."""
    return export_world.commit(export_world.make_model(tmp_path / "model"), tmp_path / "run")


@pytest.mark.s3
def test_an_export_in_s3_is_fetched_file_by_file_and_a_changed_one_is_not(
    s3: Any, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = str(uuid4())
    uri, reach = f"s3://{s3.bucket}/{prefix}/out", ["--endpoint", s3.endpoint]
    assert main(["export", "--source", str(exported), "--output", uri, "--shard-bytes", "200000", *reach]) == 0
    digest = capsys.readouterr().out.split()[1]
    assert main(["export", "--source", str(exported), "--output", uri, *reach]) == 64
    assert f"--output {uri} exists" in capsys.readouterr().err
    model = tmp_path / "model-here"
    assert main(["fetch", uri, str(model), "--digest", digest, *reach]) == 0
    assert [p.read_bytes() for p in sorted(model.glob("*.safetensors"))]
    assert not [link for link in walk_chain(f"file://{model}", deep=True) if link.problems]
    assert main(["fetch", uri, str(tmp_path / "other"), "--digest", "sha256:" + "0" * 64, *reach]) == 1
    assert "it is another export" in capsys.readouterr().err
    store = open_storage(uri, s3.endpoint)
    shard = bytearray(store.get_bytes("config.json"))
    shard[10] ^= 1
    store.put_bytes("config.json", bytes(shard))
    assert main(["fetch", uri, str(tmp_path / "changed"), *reach]) == 1
    assert "config.json has sha256" in capsys.readouterr().err
    assert not (tmp_path / "changed" / "MANIFEST.json").exists()


def test_a_fetch_into_a_folder_that_holds_another_export_leaves_only_checked_files(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = export_world.commit(export_world.make_model(tmp_path / "other", initializer_range=0.5), tmp_path / "run-b")
    assert (other / "model.safetensors").read_bytes() != (exported / "model.safetensors").read_bytes()
    model = tmp_path / "model-here"
    assert main(["fetch", str(exported), str(model)]) == 0
    assert main(["fetch", str(other), str(model)]) == 0
    assert all((model / f.name).read_bytes() == f.read_bytes() for f in other.iterdir())
    flip(model / "model.safetensors")  # same size
    assert main(["fetch", str(other), str(model)]) == 0
    assert (model / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    stale = model / "model-00002-of-00002.safetensors"
    stale.write_bytes(b"of another model")
    capsys.readouterr()
    assert main(["fetch", str(other), str(model)]) == 64
    assert "1 files that the export does not have (model-00002-of-00002.safetensors)" in capsys.readouterr().err


def test_a_fetch_that_fails_leaves_no_manifest_of_another_export(exported: Path, tmp_path: Path) -> None:
    other = export_world.commit(export_world.make_model(tmp_path / "other", initializer_range=0.5), tmp_path / "run-b")
    flip(other / "model.safetensors")
    model = tmp_path / "model-here"
    assert main(["fetch", str(exported), str(model)]) == 0
    assert main(["fetch", str(other), str(model)]) == 1
    assert not (model / "MANIFEST.json").exists()
    assert main(["fetch", str(exported), str(model)]) == 0
    assert all((model / f.name).read_bytes() == f.read_bytes() for f in exported.iterdir())
