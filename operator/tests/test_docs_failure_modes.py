"""The page of failure modes names every reason that there is, and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

from deepcoder_operator.api.failure import FailureReason

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "failure-modes.md").read_text()


def test_every_reason_of_a_failure_is_explained() -> None:
    reasons = {str(r) for r in FailureReason} - {str(FailureReason.UNKNOWN)}
    assert [r for r in sorted(reasons) if f"`{r}`" not in PAGE] == []


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`((?:test|e2e)_[a-z0-9_]+)`", PAGE)
    assert len(named) > 40
    folders = [ROOT / part for part in ("operator/tests", "trainer_image/tests", "tests/e2e")]
    files = {path.stem for folder in folders for path in folder.glob("test_*.py")}
    assert [name for name in named if name not in files and f"test_{name}" not in files] == []
