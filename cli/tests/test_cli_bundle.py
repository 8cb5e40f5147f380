"""The file of a debug bundle: what is told of it, and that only its owner can read it."""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
import tempfile
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


def test_an_archive_that_has_no_room_leaves_the_one_before_it(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "before.tar.gz").write_bytes(b"an archive")
    link = tmp_path / "bundle.tar.gz"
    link.symlink_to("before.tar.gz")

    def on_a_full_disk(descriptor: int, mode: str) -> Any:
        os.close(descriptor)
        return Path("/dev/full").open(mode)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdopen", on_a_full_disk)
        with pytest.raises(click.UsageError, match=r"--file .*bundle\.tar\.gz: No space left on device"):
            write(link)
    assert link.read_bytes() == b"an archive"
    assert len(list(tmp_path.iterdir())) == 2
    write(link)
    assert link.is_symlink()
    assert tarfile.is_tarfile(tmp_path / "before.tar.gz")


def test_an_interrupt_after_the_archive_has_its_name_is_told_as_one(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced(self: Path, path: Path) -> None:
        self.rename(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", replaced)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "bundle.tar.gz")
    assert tarfile.is_tarfile(tmp_path / "bundle.tar.gz")


def test_a_link_to_itself_is_refused_and_stays(tmp_path: Path, write: Write) -> None:
    link = tmp_path / "bundle.tar.gz"
    link.symlink_to(link)
    with pytest.raises(click.UsageError, match=r"bundle\.tar\.gz: Too many levels of symbolic links"):
        write(link)
    assert link.is_symlink()


def test_a_folder_in_which_no_file_can_be_made_is_named(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "a temporary name")

    monkeypatch.setattr(tempfile, "mkstemp", refused)
    with pytest.raises(click.UsageError) as error:
        write(tmp_path / "bundle.tar.gz")
    assert error.value.message.endswith(f": no file can be made in the folder {tmp_path.resolve()}: Permission denied")


@pytest.mark.timeout(20)  # a pipe takes no more than 64 KiB that nobody reads
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
