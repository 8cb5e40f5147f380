"""An attempt's folder goes with it, and that of a killed one with the next attempt."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.judge.local import LocalJudge
from deepcoder_trainer.workdir import LOCK, Workdir, remove_left

ATTEMPT = """
import time
from deepcoder_trainer.workdir import Workdir
folder = Workdir()
(folder.path / "copy").write_text("12 bytes a parameter")
print(folder.path, flush=True)
time.sleep(60)
"""
JUDGE = """
import time
from deepcoder_trainer.judge.local import LocalJudge
judge = LocalJudge(1)
while not judge.socket.exists():
    time.sleep(0.05)
print(judge.socket.parent, flush=True)
time.sleep(60)
"""
SAMPLER = """
import time
from deepcoder_trainer.sampler.actor import SamplerActor
from deepcoder_trainer.sampler.settings import EngineSettings
sampler = SamplerActor({"config.json": b"{}"}, EngineSettings("float32", 8, 1, 8, 1 << 20))
print(sampler._folder.path, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of the test's own, with a name so short that a socket's fits below it."""
    with tempfile.TemporaryDirectory(prefix="w-", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)


def test_what_a_killed_attempt_leaves_is_removed_by_the_next_and_what_a_live_one_works_in_is_not(
    place: Path,
) -> None:
    with subprocess.Popen([sys.executable, "-c", ATTEMPT], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            folder = Path(process.stdout.readline().strip())
            assert folder.parent == place
            beside = Workdir()
            assert (folder / "copy").exists()
        finally:
            process.kill()
    assert (folder / "copy").exists()
    last = Workdir()
    assert set(place.iterdir()) == {beside.path, last.path}
    for each in (beside, last):
        each.remove()
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(("program", "holds"), [(JUDGE, "judge.sock"), (SAMPLER, "config.json")])
def test_what_judges_and_samplers_of_a_killed_run_leave_is_removed_by_the_next(
    place: Path, program: str, holds: str
) -> None:
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            folder = Path(process.stdout.readline().strip())
            Workdir().remove()
            assert (folder / holds).exists(), "it lives"
        finally:
            process.kill()
    assert folder.exists()
    Workdir().remove()
    assert not folder.exists()


def test_a_folder_that_another_process_removes_before_it_is_locked_is_made_anew(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch, taken = Path.touch, []

    def and_another_starts(path: Path, mode: int) -> None:
        touch(path, mode)
        if not taken:
            taken.append(path.parent)
            remove_left(place)

    monkeypatch.setattr(Path, "touch", and_another_starts)
    made = Workdir()
    assert list(place.iterdir()) == [made.path]
    assert made.path not in taken
    made.remove()


def test_a_folder_that_no_attempt_made_stays(place: Path) -> None:
    (place / "deepcoder-trainer-0").mkdir()
    (place / "deepcoder-trainer-link").mkdir()
    (place / "deepcoder-trainer-link" / LOCK).symlink_to("/etc/hostname")
    Workdir().remove()
    assert sorted(path.name for path in place.iterdir()) == ["deepcoder-trainer-0", "deepcoder-trainer-link"]


def test_a_folder_whose_name_is_too_long_for_a_socket_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    deep = place / ("x" * 90)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(BadConfig, match="set TMPDIR to a shorter folder"):
        LocalJudge(1)
    assert list(deep.iterdir()) == []
