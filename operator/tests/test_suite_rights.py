"""What a whole run of the tests tells of the operator's rights, added up over its processes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import suite_rights


def note(directory: Path, used: list[str], **granted: list[str]) -> None:
    """One process of the run."""
    directory.mkdir(exist_ok=True)
    (directory / "rights-used.json").write_text(json.dumps({"used": used, "granted": granted}))


BOTH: dict[str, Any] = {"everywhere": ["get pods", "create pods"], "named": ["get pods"]}


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (["get pods"], ["create pods"], ""),
        (["get pods"], [], "granted and used by no test: create pods"),
        (["get pods"], ["create pods", "list secrets"], "used and granted by no role: list secrets"),
    ],
)
def test_what_processes_used_is_added_up_and_held_against_what_is_granted(
    first: list[str], second: list[str], told: str, tmp_path: Path
) -> None:
    note(tmp_path / "popen-gw0", first, **BOTH)
    note(tmp_path / "popen-gw1", second)
    assert suite_rights.difference(tmp_path) == told


def session(directory: Path, **more: Any) -> Any:
    """A run of pytest at its end."""
    factory = SimpleNamespace(getbasetemp=lambda: directory)
    return SimpleNamespace(config=SimpleNamespace(_tmp_path_factory=factory, **more), exitstatus=pytest.ExitCode.OK)


def test_the_last_process_fails_a_run_that_used_less_than_is_granted_and_says_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note(tmp_path / "popen-gw0", ["get pods"], **BOTH)
    worker, last = session(tmp_path, workerinput={}), session(tmp_path)
    for each in (worker, last):
        suite_rights.finish(each)
    assert (worker.exitstatus, last.exitstatus) == (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    assert "create pods" in capsys.readouterr().out


def test_a_run_of_some_tests_is_held_against_nothing(tmp_path: Path) -> None:
    note(tmp_path, ["list secrets"], everywhere=["get pods"])
    assert suite_rights.difference(tmp_path) == ""
    assert suite_rights.difference(tmp_path / "nothing") == ""
