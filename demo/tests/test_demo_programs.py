"""Programs that the demo runs: they end with it, asked before they are killed, and their failures are passed on."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deepcoder_demo import cluster, commands, data, devcluster, existing_cluster, platform, wait_limit
from deepcoder_demo.commands import CommandFailed, GivenUp, run
from deepcoder_demo.settings import Cluster, Images, S3Access, SettingsError
from deepcoder_demo.stopwatch import Stopwatch

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
    told = f"trap 'echo ended > {tmp_path}/ended; exit 0' TERM; touch {tmp_path}/begun"
    program = script(tmp_path / "p", f"{told}\nwhile :; do sleep 0.05; done")
    for seconds in (0.5, 5, 50):
        with pytest.raises(CommandFailed, match="did not end within"):
            run([program], seconds=seconds)
        if (tmp_path / "begun").exists():  # else the machine was too slow for it to hear anything
            break
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
    monkeypatch.setattr(existing_cluster, "named", lambda environment, ours: None)
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


def test_run_that_nobody_mends_is_given_up_with_the_reason_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    refused = {"type": "Accepted", "status": "False", "reason": "JudgesRefuseToStart", "message": "raise the limit"}
    told = f"trap 'echo ended > {tmp_path}/ended; exit 0' TERM; touch {tmp_path}/begun"
    watching = f"case $* in *--watch*) {told}; while :; do sleep 0.05; done;;"
    program = script(tmp_path / "kubectl-deepcoder", f'{watching} esac; echo "$*"')
    monkeypatch.setattr(platform, "tool", lambda name: program)

    def get(*arguments: Any) -> dict[str, Any]:
        """Refused once what follows the run hears what it is asked."""
        return {"status": {"conditions": [refused] if (tmp_path / "begun").exists() else []}}

    monkeypatch.setattr(platform, "get", get)
    monkeypatch.setattr(commands, "LOOK_SECONDS", 0.05)
    monkeypatch.setitem(wait_limit.WAIT_SECONDS, "Accepted", 0.1)
    with pytest.raises(GivenUp, match=r"would go on waiting: JudgesRefuseToStart: raise the limit"):
        platform.follow(SOME_CLUSTER, "run", "team", seconds=60)
    assert (tmp_path / "ended").read_text() == "ended\n", "what follows it is asked to end"
    assert "status run -n team\n" in capfd.readouterr().out


def test_api_server_that_does_not_answer_is_no_reason_to_give_a_run_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def get(*arguments: Any) -> dict[str, Any]:
        asked.append(1)
        if len(asked) == 1:
            raise CommandFailed("the server is restarting")
        return {"status": {"phase": "Complete"}}

    program = script(tmp_path / "kubectl-deepcoder", "sleep 0.3")
    monkeypatch.setattr(platform, "tool", lambda name: program)
    monkeypatch.setattr(platform, "get", get)
    monkeypatch.setattr(commands, "LOOK_SECONDS", 0.05)
    assert platform.follow(SOME_CLUSTER, "run", "team", seconds=30) == {"status": {"phase": "Complete"}}
    assert len(asked) > 1


def waiting(**reasons: str) -> dict[str, Any]:
    """A run whose conditions of these names are false, for these reasons."""
    conditions = [{"type": k, "status": "False", "reason": v, "message": f"mend {v}"} for k, v in reasons.items()]
    return {"status": {"conditions": [{"type": "Progressing", "status": "False", "reason": "Any"}, *conditions]}}


REFUSED = waiting(Accepted="JudgesRefuseToStart", SandboxReady="PoolNotReady")


def test_run_may_wait_for_a_while_and_the_row_begins_anew_when_it_gets_on() -> None:
    now, bound = [0.0], wait_limit.WAIT_SECONDS["Accepted"]
    looked = wait_limit.WaitLimit(lambda: now[0])

    def at(seconds: float, run: dict[str, Any]) -> str | None:
        now[0] = seconds
        return looked.spent(run)

    assert at(0, REFUSED) is None
    assert at(bound - 1, REFUSED) is None
    assert at(bound, waiting()) is None
    assert at(bound + 1, REFUSED) is None
    told = at(2 * bound + 1, REFUSED)
    assert told is not None
    assert told.endswith("would go on waiting: JudgesRefuseToStart: mend JudgesRefuseToStart")


@pytest.mark.parametrize(
    ("run", "ends"),
    [
        (waiting(SandboxReady="PoolNotReady"), True),
        (waiting(Accepted="CredentialsRefused"), True),
        (waiting(SandboxReady="PoolNotMade"), False),
        (waiting(QuotaReserved="Waiting"), False),
        ({}, False),
    ],
)
def test_only_what_somebody_has_to_mend_is_waited_for_in_vain(run: dict[str, Any], ends: bool) -> None:
    now = [0.0]
    looked = wait_limit.WaitLimit(lambda: now[0])
    assert looked.spent(run) is None
    now[0] = 10_000.0
    assert (looked.spent(run) is not None) is ends


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


def test_the_demos_files_are_made_once_and_what_a_killed_run_left_is_not_taken_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def make(command: list[Any], *, seconds: float) -> str:
        folder = Path(command[-1])
        assert not folder.exists()
        made.append(folder)
        folder.mkdir()
        (folder / "train.jsonl").write_text("{}")
        if len(made) == 1:
            raise CommandFailed("killed half-way")
        return ""

    monkeypatch.setattr(data, "run", make)
    with pytest.raises(CommandFailed):
        data.make(tmp_path)
    folder = data.make(tmp_path)
    assert (folder / "train.jsonl").exists()
    assert data.make(tmp_path) == folder
    assert len(made) == 2
