"""Process 1 of a node outlives a full disk and programs that are not there: with it the whole cluster would end.

It runs without a node's namespaces here, in a process of its own since it reaps every child.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from devcluster.kubectl import wait_for

PROGRAM = """\
import json, sys
from pathlib import Path
from devcluster import nodeinit
nodeinit._LOGS = Path(sys.argv[1])
nodeinit._Node._make_view = nodeinit._Node._api_is_ready = lambda node: None
sys.exit(nodeinit._Node(json.loads(sys.argv[2])).run())
"""
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Process 1 with components that have these command lines."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**commands: list[str]) -> subprocess.Popen[bytes]:
        components = [
            {"name": name, "command": command, "environment": {}, "needs_api": False}
            for name, command in commands.items()
        ]
        spec = json.dumps({"status_file": str(tmp_path / "status.json"), "components": components})
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), spec]
        with (tmp_path / "said").open("w") as said:
            started.append(subprocess.Popen(command, stderr=said))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def parts(tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "status.json"
    return {part["name"]: part for part in json.loads(file.read_text())["components"]} if file.exists() else {}


def ended_for_good(tmp_path: Path, process: subprocess.Popen[bytes], *names: str) -> dict[str, Any]:
    """The components, once the status file says that these stay down."""

    def told() -> bool:
        assert process.poll() is None, (tmp_path / "said").read_text()
        found = parts(tmp_path)
        return all(name in found and found[name]["gave_up"] for name in names)

    wait_for(f"{', '.join(names)} to stay down", told, 60)
    return parts(tmp_path)


def end(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(30)


def test_a_program_that_is_not_there_counts_as_one_that_ends_and_the_others_run(start: Start, tmp_path: Path) -> None:
    process = start(missing=["/nowhere/program"], other=["echo", "started"])
    found = ended_for_good(tmp_path, process, "missing", "other")
    assert found["missing"]["restarts"] == 5
    assert "No such file or directory: '/nowhere/program'" in found["missing"]["last_exit"]
    assert (found["other"]["restarts"], found["other"]["last_exit"]) == (5, "exit code 0")
    assert end(process) == 0


def test_a_log_that_cannot_be_opened_is_told(start: Start, tmp_path: Path) -> None:
    (tmp_path / "quiet.log").mkdir()
    process = start(quiet=["echo", "started"])
    assert "quiet.log" in ended_for_good(tmp_path, process, "quiet")["quiet"]["last_exit"]
    assert end(process) == 0


def test_a_status_for_which_there_is_no_room_is_written_when_there_is(start: Start, tmp_path: Path) -> None:
    full = tmp_path / "status.new"
    full.symlink_to("/dev/full")
    process = start(part=["echo", "started"])

    def went_round() -> bool:
        """It writes the status between two starts."""
        assert process.poll() is None, (tmp_path / "said").read_text()
        log = tmp_path / "part.log"
        return log.exists() and len(log.read_text().splitlines()) > 1

    wait_for("a second start", went_round, 60)
    assert parts(tmp_path) == {}
    full.unlink()
    assert ended_for_good(tmp_path, process, "part")["part"]["restarts"] == 5
    assert end(process) == 0
