"""The page of failure modes names every reason that there is, and of each failure tests that see a sign of it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from deepcoder_contracts.api.failure import FailureReason

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "failure-modes.md").read_text()
FOLDERS = [ROOT / part for part in ("operator/tests", "trainer_image/tests", "tests/e2e")]
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.endswith("| test |")]
WORD = re.compile(r"`(?!DeepCoder)([A-Z][a-zA-Z0-9]+)(?:=\w+)?`")
"""A reason, a phase or a condition; alerts have tests of their own."""


@cache
def functions(file: str) -> dict[str, str]:
    """Name to text, of the tests of a file."""
    (path,) = [folder / f"{file}.py" for folder in FOLDERS if (folder / f"{file}.py").exists()]
    text = path.read_text()
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            begin = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found[node.name] = "\n".join(text.splitlines()[begin - 1 : node.end_lineno])
    return found


def shows(text: str, word: str) -> bool:
    """Whether a test looks for a word, in itself or as the member of an enumeration."""
    member = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", word).upper()
    return re.search(rf"\b{word}\b|\.{member}\b", text) is not None


def test_every_reason_of_a_failure_is_explained() -> None:
    reasons = {str(r) for r in FailureReason} - {str(FailureReason.UNKNOWN)}
    assert [r for r in sorted(reasons) if f"`{r}`" not in PAGE] == []


def test_every_alert_that_is_named_exists() -> None:
    files = (ROOT / "helm" / "deepcoder-operator" / "files").glob("alerts*.yaml")
    rules = "".join(file.read_text() for file in files)
    known = set(re.findall(r"alert: (\w+)", rules))
    assert set(re.findall(r"`(DeepCoder[A-Z]\w+)`", PAGE)) <= known


def test_there_are_rows() -> None:
    assert len(ROWS) > 45


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.strip("|").split("|")[0].strip()[:40])
def test_each_failure_is_played_by_tests_that_exist_and_look_for_a_sign_of_it(row: str) -> None:
    *said, cell = row.strip("|").split("|")
    named = re.findall(r"`([a-z0-9_]+)::(test_[a-z0-9_]+)`", cell)
    assert named, "the last column names `file::function`"
    assert len(named) == cell.count("`") / 2, "and nothing else"
    for file, function in named:
        assert function in functions(file), f"{file} has no {function}"
    words = WORD.findall("|".join(said))
    texts = [functions(file)[function] for file, function in named]
    assert not words or any(shows(text, word) for text in texts for word in words), f"none of {words} is looked for"
