"""The rights that operators used in a whole run of the tests, against those that the chart grants them: equal.

Each process of a run notes, at its end, what the audit logs of its API servers told of all operators that its tests
started; the last one, to which all the others were subject, adds these up. They are compared where the run had the
tests that go through all that an operator does (`TESTS`), by verb and kind: where, and on which object, a right is
granted is those tests' own matter.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import api_audit
import pytest
from api_audit import Right

TESTS = frozenset({"everywhere", "named"})
"""The two ways to install the chart, each of which `test_rights_used` goes through."""

_FILE = "rights-used.json"
_granted: dict[str, list[str]] = {}


def note_granted(test: str, roles: list[dict[str, Any]]) -> None:
    """What one of the tests was granted."""
    _granted[test] = _names(api_audit.granted(roles))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """For a conftest to import: note what this process knows, and judge the whole run where it is the last to end."""
    directory = session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    known = {"used": _names(api_audit.noted()), "granted": _granted}
    (directory / _FILE).write_text(json.dumps(known))
    if hasattr(session.config, "workerinput"):
        return
    if told := difference(directory):
        print(f"\nrights of the operator: {told}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def difference(directory: Path) -> str:
    """How the two differ, once all processes have ended; nothing where they are equal, or cannot be compared."""
    notes = [json.loads(p.read_text()) for p in (*directory.glob(_FILE), *directory.glob(f"popen-*/{_FILE}"))]
    granted = {test: set(rights) for note in notes for test, rights in note["granted"].items()}
    if {*granted} != TESTS:
        return ""
    used = {right for note in notes for right in note["used"]}
    allowed = set().union(*granted.values())
    faults = {"granted and used by no test": allowed - used, "used and granted by no role": used - allowed}
    return "; ".join(f"{what}: {', '.join(sorted(rights))}" for what, rights in faults.items() if rights)


def _names(rights: Iterable[Right]) -> list[str]:
    return sorted({f"{r.verb} {r.resource}{'.' if r.group else ''}{r.group}" for r in rights})
