"""The rights that operators used in a whole run of the tests, against those that the chart grants them: equal.

Each process of a run notes what its API server's audit log tells of all operators that its tests started; the last one
adds these up. They are compared where the run had the tests that go through all that an operator does (`TESTS`), by
verb and kind: where, and on which object, a right is granted is those tests' own matter.
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


def write(directory: Path, kubeconfig: Path) -> None:
    """Note what was used at this API server, and what was granted in this process."""
    used = _names(right for r in api_audit.of_operators(kubeconfig) for right in r.rights)
    (directory / _FILE).write_text(json.dumps({"used": used, "granted": _granted}))


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


def finish(session: Any) -> None:
    """Fail the whole run where the two differ; in a process of several that is not the last one to end, nothing."""
    if hasattr(session.config, "workerinput"):
        return
    if told := difference(session.config._tmp_path_factory.getbasetemp()):
        print(f"\nrights of the operator: {told}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _names(rights: Iterable[Right]) -> list[str]:
    return sorted({f"{r.verb} {r.resource}{'.' if r.group else ''}{r.group}" for r in rights})
