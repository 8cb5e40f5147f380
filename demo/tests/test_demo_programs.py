"""Programs that the demo runs: they end with it, asked before they are killed, and their failures are passed on."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deepcoder_demo import cluster, commands, data, devcluster, foreign, platform
from deepcoder_demo.clock import Stopwatch
from deepcoder_demo.commands import CommandFailed, run
from deepcoder_demo.settings import Cluster, Images, S3Access, SettingsError

PLACES = devcluster.Places(*(Path("/nowhere") / name for name in devcluster.Places.__dataclass_fields__))
CONSOLE = Console(quiet=True)
SOME_CLUSTER = Cluster("/a", False, Images("o", "t", "s"), S3Access("http://s3", "http://s3", "b", "r", "k", "s"))


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_failure_carries_the_status_and_the_last_words() -> None:
    with pytest.raises(CommandFailed, match=r"(?s)ended with status 3:.*no such thing") as failure:
        run(["sh", "-c", "echo no such thing >&2; exit 3"], seconds=30)
    assert failure.value.status == 3


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandFailed, match="no-such-program is not installed"):
        run(["no-such-program"], seconds=30)


def test_a_program_past_its_deadline_is_asked_to_end_what_it_started(tmp_path: Path) -> None:
    program = script(tmp_path / "p", f"trap 'echo ended > {tmp_path}/ended; exit 0' TERM\nwhile :; do sleep 0.05; done")
    with pytest.raises(CommandFailed, match="did not end within"):
        run([program], seconds=0.5)
    assert (tmp_path / "ended").read_text() == "ended\n"


def test_a_program_that_does_not_end_when_asked_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "GRACE_SECONDS", 0.2)
    with pytest.raises(CommandFailed, match="did not end within"):
        run(["sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"], seconds=0.5)


@pytest.mark.parametrize("code", [64, 1])
def test_what_devcluster_will_not_do_is_a_setting_and_its_other_failures_are_not(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devcluster, "_command", lambda *arguments: ["sh", "-c", f"exit {code}"])
    with pytest.raises(SettingsError if code == 64 else CommandFailed):
        devcluster.do("up", seconds=30)


def test_where_things_lie_cannot_be_told_is_a_failure_with_what_devcluster_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = "devcluster: [Errno 28] No space left on device"
    monkeypatch.setattr(devcluster, "_command", lambda *arguments: ["sh", "-c", f"echo '{said}' >&2; exit 1"])
    with pytest.raises(CommandFailed, match="No space left"):
        devcluster.places()


@pytest.fixture
def making(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once the demo's model and problems are being made, which lasts for ever."""
    started = threading.Event()

    def make(cache: Path) -> Path:
        started.set()
        run(["sleep", "600"], seconds=600)
        return cache

    monkeypatch.setattr(data, "make", make)
    monkeypatch.setattr(devcluster, "places", lambda: PLACES)
    monkeypatch.setattr(foreign, "named", lambda environment, ours: None)
    return started


def test_a_cluster_that_cannot_be_made_ends_the_making_of_data_too(
    making: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def do(*arguments: str, seconds: float) -> None:
        if arguments[0] == "up":
            assert making.wait(30)
            while not commands._running:
                time.sleep(0.01)
            raise SettingsError("port 16443 is taken")

    monkeypatch.setattr(devcluster, "do", do)
    began = time.monotonic()
    with pytest.raises(SettingsError, match="16443"):
        cluster.prepare(Stopwatch(CONSOLE))
    assert time.monotonic() - began < 60
    assert commands._running == set()


def test_nothing_is_begun_on_a_machine_that_will_not_do(
    making: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def do(*arguments: str, seconds: float) -> None:
        raise SettingsError("Go is not installed")

    monkeypatch.setattr(devcluster, "do", do)
    with pytest.raises(SettingsError, match="Go"):
        cluster.prepare(Stopwatch(CONSOLE))
    assert not making.is_set()


@pytest.mark.parametrize(("code", "phase", "ends"), [(0, "Complete", True), (1, "Failed", True), (1, "Running", False)])
def test_a_run_that_has_ended_is_told_from_one_that_has_not_and_what_is_not_complete_is_shown(
    code: int,
    phase: str,
    ends: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    found: dict[str, Any] = {"status": {"phase": phase}}
    program = script(tmp_path / "kubectl-deepcoder", f'echo "$*"; [ "$KUBECONFIG" = /a ] && exit {code}')
    monkeypatch.setattr(platform, "tool", lambda name: program)
    monkeypatch.setattr(platform, "get", lambda *arguments: found)
    if ends:
        assert platform.follow(SOME_CLUSTER, "run", "team", seconds=30) == found
    else:
        with pytest.raises(CommandFailed):
            platform.follow(SOME_CLUSTER, "run", "team", seconds=30)
    assert ("status run -n team\n" in capfd.readouterr().out) is (phase != "Complete")
