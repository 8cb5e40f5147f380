"""The file of a debug bundle: what is told of it, and that only its owner can read it."""

from __future__ import annotations

import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest

from deepcoder_cli.commands import bundle
from deepcoder_client.bundle import Bundle


class Where:
    """A cluster of which nothing is asked."""

    def client(self) -> None:
        return None


@pytest.mark.parametrize("there_before", [False, True])
def test_only_the_owner_can_read_the_archive_whatever_file_was_there_before(
    there_before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bundle, "gather", lambda *_, **__: Bundle({"run.yaml": "of a run"}, ["logs: why"]))
    path, where = tmp_path / "bundle.tar.gz", Where()
    if there_before:
        path.write_bytes(b"x" * 100_000)
        path.chmod(0o644)
    given: Any = where
    bundle.debug_bundle(given, "demo", path, "deepcoder", False, None)
    assert stat.filemode(path.stat().st_mode) == "-rw-------"
    with tarfile.open(path) as archive:
        assert sorted(name.partition("/")[2] for name in archive.getnames()) == ["REPORT.txt", "run.yaml"]
    told = capsys.readouterr()
    assert (told.out, told.err) == (f"{path}: run.yaml\n", "missing: logs: why\n")
