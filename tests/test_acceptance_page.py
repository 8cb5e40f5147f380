"""What docs/acceptance.md says of its tests is what a run of them gave, and only of the rows whose tests all ran."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = """# Acceptance

| What | Tests | Result |
|---|---|---|
| Both parts | `a/tests/test_a.py`, `tests/test_b.py` | never |
| One part | `a/tests/test_a.py` | never |
| Another | `tests/test_c.py` | 2026-01-01: 9 passed, 1 s |
| More | `a/tests/test_a.py`, `tests/test_c.py` | 2026-01-01: 9 passed, 1 s |

`tests/test_b.py` is told of here | too | and stays
"""
JUNIT = """<testsuites><testsuite>
<testcase classname="a.tests.test_a" name="one" time="1.5"/>
<testcase classname="a.tests.test_a.TestClass" name="two" time="0.25"><skipped/></testcase>
<testcase classname="tests.test_b" name="three" time="2"><failure/></testcase>
<testcase classname="tests.test_b" name="four" time="1"><error/></testcase>
<testcase classname="tests.test_other" name="five" time="60"/>
</testsuite></testsuites>"""
KNOWN = {"test_a": "a/tests/test_a.py", "test_b": "tests/test_b.py", "test_c": "tests/test_c.py"}


@pytest.fixture
def acceptance(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import acceptance

    return acceptance


@pytest.fixture
def repository(acceptance: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the page, its tests and a Makefile."""
    for test in KNOWN.values():
        (tmp_path / test).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / test).touch()
    (tmp_path / "Makefile").write_text("test: setup\n\tpytest\nbench-%:\n")
    (tmp_path / "page.md").write_text(PAGE)
    (tmp_path / "junit.xml").write_text(JUNIT)
    monkeypatch.setattr(acceptance, "ROOT", tmp_path)
    monkeypatch.setattr(acceptance, "PAGE", tmp_path / "page.md")
    return tmp_path


def test_a_row_tells_the_sum_of_its_tests_and_one_whose_tests_did_not_all_run_stays(
    acceptance: ModuleType, repository: Path
) -> None:
    found = acceptance.read([repository / "junit.xml"], KNOWN)
    lines = acceptance.filled(PAGE, found, "2026-11-30").splitlines()
    assert lines[4] == (
        "| Both parts | `a/tests/test_a.py`, `tests/test_b.py` | 2026-11-30: **2 failed**, 1 passed, 1 skipped, 5 s |"
    )
    assert lines[5] == "| One part | `a/tests/test_a.py` | 2026-11-30: 1 passed, 1 skipped, 2 s |"
    assert lines[:4] + lines[6:] == PAGE.splitlines()[:4] + PAGE.splitlines()[6:]


def test_results_of_several_files_are_added(acceptance: ModuleType, repository: Path) -> None:
    found = acceptance.read([repository / "junit.xml"] * 2, KNOWN)
    assert (found["a/tests/test_a.py"].passed, found["tests/test_b.py"].failed) == (2, 4)


@pytest.mark.parametrize("failed", [True, False])
def test_a_test_that_failed_fails_the_program_and_is_written_all_the_same(
    acceptance: ModuleType, repository: Path, monkeypatch: pytest.MonkeyPatch, failed: bool
) -> None:
    if not failed:
        text = JUNIT.replace("<failure/>", "").replace("<error/>", "")
        (repository / "junit.xml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["acceptance.py", str(repository / "junit.xml")])
    assert acceptance.main() == int(failed)
    assert ("**2 failed**" in (repository / "page.md").read_text()) is failed


def test_a_row_that_names_what_does_not_exist_is_told(
    acceptance: ModuleType, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = PAGE + "| Gone | `tests/test_gone.py`, `make test`, `make bench-judge`, `make tset FAST=1` | – |\n"
    (repository / "page.md").write_text(page)
    monkeypatch.setattr(sys, "argv", ["acceptance.py", "--check"])
    assert acceptance.main() == 1
    assert capsys.readouterr().err.splitlines() == [
        "docs/acceptance.md names tests/test_gone.py, which does not exist",
        "docs/acceptance.md names make tset, which does not exist",
    ]
    (repository / "page.md").write_text(PAGE)
    assert acceptance.main() == 0
