"""What the live trainer prints, read by a command within its head: also from one that does not answer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from deepcoder_client import driver_log
from deepcoder_client.driver_log import NOTHING_YET, driver_lines, program
from deepcoder_client.errors import Unreachable


class Connection:
    """To a cluster in which everything is allowed."""

    host, timeout, configuration = "https://cluster", 1.0, None

    def lacking(self, *_: Any) -> None:
        return None

    def socket_headers(self) -> list[str]:
        return []


class Stuck:
    """A stream of a node that has stopped: open, and nothing comes."""

    closed = False

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def is_open(self) -> bool:
        return True

    def update(self, timeout: float) -> None:
        pass

    def peek_stdout(self) -> bool:
        return False

    def read_stdout(self) -> str:
        return ""

    peek_stderr, read_stderr = peek_stdout, read_stdout

    def close(self) -> None:
        Stuck.closed = True


def test_head_that_does_not_answer_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_log, "WSClient", Stuck)
    monkeypatch.setattr(driver_log, "_READ_SECONDS", 0.05)
    connection: Any = Connection()
    with pytest.raises(Unreachable, match="pod demo-head has not said all"):
        list(driver_lines(connection, "team", "demo-head", tail=10, follow=False))
    assert Stuck.closed


def test_what_a_trainer_that_begins_later_prints_is_followed(tmp_path: Path) -> None:
    """The head runs for minutes before Ray starts the trainer in it: until then there is no file to follow."""
    (tmp_path / "bin").mkdir()
    sleep = tmp_path / "bin" / "sleep"
    sleep.write_text(f"#!/bin/sh\necho 'step 1' > {tmp_path}/job-driver-7.log\n")  # while it is waited for
    sleep.chmod(0o755)
    words = ["sh", "-c", program(5, follow=True, files=f"{tmp_path}/job-driver-*.log")]
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(
        words, env={**os.environ, "PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as tail:
        assert tail.stdout is not None
        first = tail.stdout.readline()
        tail.kill()
    assert first == b"step 1\n"


def test_a_trainer_that_has_not_begun_is_told_apart_from_a_silent_one(tmp_path: Path) -> None:
    words = ["sh", "-c", program(5, follow=False, files=f"{tmp_path}/job-driver-*.log")]
    none = subprocess.run(words, capture_output=True, timeout=60, check=False)
    assert (none.returncode, none.stdout, none.stderr) == (NOTHING_YET, b"", b"")
    (tmp_path / "job-driver-7.log").touch()
    assert subprocess.run(words, capture_output=True, timeout=60, check=True).stdout == b""
