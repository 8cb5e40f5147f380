"""The command line: what will not do is said before anything is made, errors in a line each, and paths for programs."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import cli
from devcluster.artifacts import Artifacts
from devcluster.config import REPOSITORY


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_caches: Path) -> Iterator[Path]:
    """A cache of the test's own, and the signal handling as it was."""
    monkeypatch.setenv("DEEPCODER_CACHE", str(tmp_path))
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    "arguments", [["doctor", "--api-port"], ["doctor", "--s3-port"], ["up", "--api-port"], ["install", "--s3-port"]]
)
def test_a_taken_port_is_said_with_the_mend_before_anything_is_made(
    arguments: list[str], taken: int, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*arguments, str(taken)]) == cli.EXIT_USAGE
    assert f"port {taken} on 127.0.0.1 is taken" in capsys.readouterr().err
    assert list(cache.iterdir()) == []


def fails_with(reason: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(self: Artifacts) -> None:
        raise reason

    monkeypatch.setattr(cli, "_machine_will_do", lambda ports=(): True)
    monkeypatch.setattr(Artifacts, "build", build)


@pytest.mark.parametrize(
    ("reason", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "set DEEPCODER_CACHE to a directory on another one"),
        (OSError(errno.EROFS, "Read-only file system"), 1, "Set DEEPCODER_CACHE to a directory that can be written"),
        (PermissionError(errno.EACCES, "Permission denied"), 1, "Run with sudo, or as root"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_anybody_may_meet_is_a_line_with_the_mend(
    reason: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(reason, monkeypatch)
    assert cli.main(["build"]) == code
    assert said in capsys.readouterr().err


def test_status_tells_programs_where_things_lie_of_a_cluster_that_is_down_too(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--name", "nobody", "status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["exists"] is False
    assert found["faults"] == ["the node is not running"]
    assert found["cache"] == str(cache)
    assert found["kubeconfig"] == str(cache / "devcluster/nobody/kubeconfig")
    assert {"kubectl", "helm", "images", "s3"} <= set(found)


@pytest.mark.parametrize(("command", "code"), [("doctor", None), ("status", 1), ("down", 0)])
def test_what_runs_before_the_set_up_and_after_it_has_gone_needs_the_standard_library_alone(
    command: str, code: int | None, cache: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "devcluster", "--name", "nobody", command],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "devcluster/src"), "DEEPCODER_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode in ((0, cli.EXIT_USAGE) if code is None else (code,))
