"""The docs hold together: the site builds strictly, and every link, also one that leaves docs/, leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
_CODE = re.compile(r"^```.*?^```|`[^`\n]*\]\([^`\n]*`", re.MULTILINE | re.DOTALL)
"""Fenced blocks, and code that looks like a link."""
_LINK = re.compile(r"\[(?:`[^`]*`|[^\]`])*\]\((?P<target>[^)\s#]+)(?:#L(?P<line>\d+))?[^)]*\)")


def test_site_builds_strictly(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    fetched = {
        path.relative_to(tmp_path / "site")
        for path in (tmp_path / "site").rglob("*.html")
        if re.search(r'(?:src|<link[^>]*href)="https?://', path.read_text())
    }
    assert not fetched, f"pages that load something from elsewhere: {fetched}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_line_that_are_there(page: Path) -> None:
    for found in _LINK.finditer(_CODE.sub("", page.read_text())):
        target, line = found["target"], found["line"]
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target).resolve()
        assert path.exists(), f"{target} is not there"
        assert path.is_relative_to(ROOT), f"{target} leaves the repository"
        if line is not None:
            assert int(line) <= len(path.read_text().splitlines()), f"{target} has no line {line}"


def test_every_dated_page_is_in_the_list_of_what_was_measured() -> None:
    listed = (ROOT / "docs" / "results" / "index.md").read_text()
    pages = {p.name for p in (ROOT / "docs" / "results").glob("*.md")} - {"index.md"}
    assert not {name for name in pages if f"]({name})" not in listed}
