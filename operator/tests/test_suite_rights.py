"""What a whole run of the tests tells of the operator's rights, added up over its processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import api_audit
import pytest
import suite_rights

HERE = Path(__file__).resolve().parent


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


def test_a_run_of_some_tests_is_held_against_nothing(tmp_path: Path) -> None:
    note(tmp_path, ["list secrets"], everywhere=["get pods"])
    assert suite_rights.difference(tmp_path) == ""
    assert suite_rights.difference(tmp_path / "nothing") == ""


SUITE = """
import json
import api_audit, pytest, suite_rights
from suite_rights import pytest_sessionfinish as pytest_sessionfinish

@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory):
    path = tmp_path_factory.mktemp("control-plane") / "kubeconfig"
    yield path
    api_audit.note(path)  # as every API server of the tests ends

@pytest.fixture
def asks(kubeconfig):
    def asked(verb, resource):
        event = {
            "auditID": verb, "verb": verb, "objectRef": {"resource": resource, "namespace": "ml"},
            "user": {"username": "system:serviceaccount:ml:operator"}, "userAgent": "deepcoder (operator-a)",
            "requestReceivedTimestamp": "2026-01-01T00:00:00Z",
        }
        with api_audit.log_of(kubeconfig).open("a") as log:
            log.write(json.dumps(event) + "\\n")
    return asked

@pytest.fixture
def granted():
    def note(test, *verbs):
        rule = {"apiGroups": [""], "resources": ["pods"], "verbs": verbs}
        suite_rights.note_granted(test, [{"metadata": {}, "rules": [rule]}])
    return note
"""
CASES = """
def test_everywhere(asks, granted):
    asks("get", "pods")
    granted("everywhere", "get", "create", "delete")

def test_named(asks, granted):
    asks("create", "pods")
    granted("named", "get", "create")

def test_another(asks):
    asks({verb!r}, "pods")
"""


@pytest.mark.parametrize(
    ("verb", "told"),
    [
        ("delete", ""),
        ("watch", "granted and used by no test: delete pods; used and granted by no role: watch pods"),
    ],
)
def test_a_run_of_three_processes_fails_where_all_that_they_used_together_is_not_what_is_granted(
    verb: str, told: str, tmp_path: Path
) -> None:
    """Each has a test of its own, an API server, and a third of what is used; as `make test` starts them."""
    suite = tmp_path / "suite"
    suite.mkdir()
    (suite / "conftest.py").write_text(SUITE)
    (suite / "test_cases.py").write_text(CASES.format(verb=verb))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    base = tmp_path / "base"
    command = [sys.executable, "-m", "pytest", "-n", "3", "--dist", "worksteal", f"--basetemp={base}", "suite"]
    environment = os.environ | {"PYTHONPATH": str(HERE), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    ended = subprocess.run(
        [*command, "-p", "xdist.plugin", "-p", "no:cacheprovider"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    notes = [json.loads(path.read_text()) for path in base.glob("popen-gw*/rights-used.json")]
    assert sorted(note["used"] for note in notes) == sorted([["get pods"], ["create pods"], [f"{verb} pods"]])
    assert ended.returncode == (1 if told else 0), ended.stdout
    assert (f"rights of the operator: {told}" in ended.stdout) == bool(told), ended.stdout


def test_the_process_that_judges_a_whole_run_has_the_hook_that_does() -> None:
    """`make test` names no folder, and that process runs no test: it has the conftests of all folders of tests."""
    program = (
        "from _pytest.config import _prepareconfig\n"
        "config = _prepareconfig(['-n', '3', '-p', 'no:cacheprovider'])\n"
        "print(any(getattr(p, '__file__', '') == 'CONFTEST' for p in config.pluginmanager.get_plugins()))"
    ).replace("CONFTEST", str(HERE / "conftest.py"))
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, timeout=120, check=True).stdout
    assert said.strip().endswith("True")


def event(number: int, verb: str) -> str:
    """A line of an audit log."""
    target = {"resource": "pods", "namespace": "ml"}
    user = {"username": "system:serviceaccount:ml:operator"}
    at = {"requestReceivedTimestamp": "2026-01-01T00:00:00Z", "userAgent": "deepcoder-operator/1 (operator-a)"}
    return json.dumps({"auditID": str(number), "verb": verb, "objectRef": target, "user": user} | at) + "\n"


def test_line_that_is_still_being_written_is_left_for_the_next_look(tmp_path: Path) -> None:
    (tmp_path / "audit.log").write_text(event(1, "get") + event(2, "list")[:-20])
    assert [r.verb for r in api_audit.requests(tmp_path / "kubeconfig", "ml:operator")] == ["get"]


def test_what_an_api_server_has_put_beside_its_full_log_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "audit-2026-01-01T00-00-00.000.log").write_text(event(1, "get") + event(2, "list"))
    (tmp_path / "audit.log").write_text(event(2, "list") + event(3, "watch"))
    asked = api_audit.requests(tmp_path / "kubeconfig", "ml:operator")
    assert [r.verb for r in asked] == ["get", "list", "watch"]
    assert len(api_audit.of_operators(tmp_path / "kubeconfig")) == 3
