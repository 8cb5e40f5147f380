"""The end of what a trainer printed is in its run's folder, however the trainer ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import pytest

from deepcoder_contracts.layout import DRIVER_LOG, log_key
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.running import driverlog

SECRET = "the-key-of-the-team"

TRAINER = """
import os, signal, sys, time
from pathlib import Path
from deepcoder_trainer.running.driverlog import save_at_the_end

save_at_the_end(Path(sys.argv[1]))
for i in range(int(sys.argv[2])):
    print(f"step {i:06d} " + "x" * 387, file=sys.stderr)
print("logged in with", os.environ["WANDB_API_KEY"], file=sys.stderr)
print("last words", flush=True)
sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def config(tmp_path: Path, make_config: Callable[..., StageConfig]) -> tuple[Path, Path]:
    """A stage's config in a file, and where its log is to lie."""
    made = make_config()
    path = tmp_path / "config" / "stage.json"
    path.parent.mkdir()
    path.write_bytes(made.to_json())
    return path, Path(urlsplit(made.storage.uri).path) / log_key(made.stage.name, made.ordinal, DRIVER_LOG)


@pytest.fixture
def printed(tmp_path: Path) -> Iterator[IO[bytes]]:
    with (tmp_path / "job-driver.log").open("wb") as file:
        yield file


def start(arguments: list[str], printed: IO[bytes], **environment: str) -> subprocess.Popen[bytes]:
    """As Ray's job supervisor starts an entrypoint: both streams in one file, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "WANDB_API_KEY": SECRET, **environment},
        stdin=subprocess.PIPE,
        stdout=printed,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for(what: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_trainer_that_is_killed_leaves_the_end_of_its_log(config: tuple[Path, Path], printed: IO[bytes]) -> None:
    path, saved = config
    trainer = start(["-c", TRAINER, str(path), "15000"], printed)
    wait_for(lambda: b"last words" in Path(printed.name).read_bytes()[-100:])
    assert not saved.exists(), "nothing is saved before the end"
    assert trainer.stdin is not None
    trainer.stdin.close()
    assert trainer.wait(20) == -signal.SIGKILL
    wait_for(saved.exists)
    text = saved.read_text()
    assert text.endswith("logged in with [redacted]\nlast words\n")
    assert (4 << 20) - 400 < len(text) <= 4 << 20
    assert text.startswith("step "), "it begins where a line does"


def test_stop_that_is_meant_for_the_trainer_does_not_end_what_saves_its_log(
    config: tuple[Path, Path], printed: IO[bytes]
) -> None:
    path, saved = config
    trainer = start(["-c", TRAINER, str(path), "1"], printed)
    wait_for(lambda: len(children(trainer.pid)) == 1)
    (saver,) = children(trainer.pid)
    for asked in (signal.SIGTERM, signal.SIGINT):
        os.kill(saver, asked)
    wait_for(lambda: b"last words" in Path(printed.name).read_bytes())
    os.killpg(trainer.pid, signal.SIGKILL)
    trainer.wait(20)
    wait_for(saved.exists)
    assert saved.read_text().endswith("last words\n")
    wait_for(lambda: not Path(f"/proc/{saver}").exists())


def test_run_in_a_cluster_saves_its_log(config: tuple[Path, Path], printed: IO[bytes]) -> None:
    path, saved = config
    run = ["-m", "deepcoder_trainer", "run", "--config", str(path)]
    trainer = start(run, printed, RAY_ADDRESS="127.0.0.1:1")
    trainer.wait(120)
    wait_for(saved.exists)
    assert saved.read_text() == Path(printed.name).read_text()
    assert "deepcoder-trainer run:" in saved.read_text()


def test_what_is_printed_to_a_terminal_or_a_pipe_is_not_saved(config: tuple[Path, Path]) -> None:
    command = "import sys; from pathlib import Path; from deepcoder_trainer.running import driverlog\n"
    command += "driverlog.save_at_the_end(Path(sys.argv[1])); print(len(driverlog._children))"
    done = subprocess.run([sys.executable, "-c", command, str(config[0])], capture_output=True, timeout=60)
    assert done.stdout == b"0\n"


def test_log_that_cannot_be_saved_says_so_in_its_last_line(config: tuple[Path, Path], printed: IO[bytes]) -> None:
    path, saved = config
    trainer = start(["-c", TRAINER, str(path), "1"], printed)
    wait_for(lambda: b"last words" in Path(printed.name).read_bytes())
    path.write_text("{}")
    trainer.kill()
    trainer.wait(20)
    wait_for(lambda: "this log could not be saved: BadConfig" in Path(printed.name).read_text())
    assert not saved.exists()


def test_secrets_are_known_by_their_variables_names() -> None:
    names = ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "HF_TOKEN", "db_password"]
    others = ["TOKENIZERS_PARALLELISM", "AWS_REGION", "KEYBOARD"]
    environment = {name: f"value of {name}" for name in names + others}
    assert driverlog.secrets_of(environment) == [f"value of {name}".encode() for name in names]


def test_mounted_secrets_are_known_by_their_volumes(tmp_path: Path) -> None:
    for volume, value in {"wandb": "key", "config": "stage.json", "shm": "not a volume of Kubernetes'"}.items():
        folder = tmp_path / volume
        (folder / "..2026").mkdir(parents=True)
        (folder / "..2026" / "file").write_text(value)
        if volume != "shm":
            (folder / "..data").symlink_to("..2026")
    mounts = tmp_path / "mounts"
    mounts.write_text("".join(f"tmpfs {tmp_path}/{v} tmpfs rw 0 0\n" for v in ("wandb", "config", "shm")))
    assert driverlog.mounted(mounts, tmp_path / "config" / "stage.json") == [b"key"]
