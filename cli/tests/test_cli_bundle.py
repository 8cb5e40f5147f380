"""The file of a debug bundle: what is told of it, and that only its owner can read it."""

from __future__ import annotations

import io
import os
import resource
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from deepcoder_cli.commands import bundle
from deepcoder_client.bundle import Bundle

Write = Callable[[Path], None]


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch) -> Write:
    """The command, with a bundle of which nothing is asked of a cluster."""

    class Where:
        def client(self) -> None:
            return None

    monkeypatch.setattr(bundle, "gather", lambda *_, **__: Bundle({"run.yaml": "of a run"}, ["logs: why"]))
    given: Any = Where()
    return lambda path: bundle.debug_bundle(given, "demo", path, "deepcoder", False, None)


@pytest.mark.parametrize("there_before", [False, True])
def test_only_the_owner_can_read_the_archive_whatever_file_was_there_before(
    there_before: bool, tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bundle.tar.gz"
    if there_before:
        path.write_bytes(b"x" * 100_000)
        path.chmod(0o644)
    write(path)
    assert stat.filemode(path.stat().st_mode) == "-rw-------"
    with tarfile.open(path) as archive:
        assert sorted(name.partition("/")[2] for name in archive.getnames()) == ["REPORT.txt", "run.yaml"]
    told = capsys.readouterr()
    assert (told.out, told.err) == (f"{path}: run.yaml\n", "missing: logs: why\n")


def test_an_archive_that_has_no_room_leaves_the_one_before_it(tmp_path: Path, write: Write) -> None:
    (tmp_path / "before.tar.gz").write_bytes(b"an archive")
    link = tmp_path / "bundle.tar.gz"
    link.symlink_to("before.tar.gz")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(click.UsageError, match=r"--file .*bundle\.tar\.gz: File too large"):
            write(link)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert link.read_bytes() == b"an archive"
    assert len(list(tmp_path.iterdir())) == 2
    write(link)
    assert link.is_symlink()
    assert tarfile.is_tarfile(tmp_path / "before.tar.gz")


def test_an_archive_goes_through_a_pipe(tmp_path: Path, write: Write) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDWR)
    try:
        write(pipe)
        assert tarfile.is_tarfile(io.BytesIO(os.read(end, 1 << 16)))
    finally:
        os.close(end)
    assert pipe.is_fifo()
