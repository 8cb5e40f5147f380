"""Where a page names a source file, there is one: a file that is moved takes its mentions along."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page
    for page in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    if page.parent.name != "results"
)
_FILE = re.compile(r"`(?:[\w./-]*…/)?(?P<path>[\w.-]+(?:/[\w.-]+)+\.py)`")
"""A file with a folder; what stands before `…` is left out."""
FILES = [
    path.as_posix()
    for folder in ROOT.iterdir()
    if folder.is_dir() and folder.name[0] != "." and folder.name not in ("build", "out")
    for path in folder.rglob("*.py")
]
_ELSEWHERE = ("rllm/", "verl/")
"""Files of the released code, which grpo-plus.md compares with."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_source_files_that_a_page_names_are_there(page: Path) -> None:
    named = {match["path"] for match in _FILE.finditer(page.read_text())}
    missing = [p for p in sorted(named) if not p.startswith(_ELSEWHERE) and not any(f.endswith(f"/{p}") for f in FILES)]
    assert missing == []
