"""The docs hold together: the site builds strictly, draws its diagrams by itself, and every link, also one that leaves
docs/, leads somewhere."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from devcluster import testprograms
from devcluster.config import cache_root

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
_CODE = re.compile(r"^```.*?^```|`[^`\n]*\]\([^`\n]*`", re.MULTILINE | re.DOTALL)
"""Fenced blocks, and code that looks like a link."""
_LINK = re.compile(r"\[(?:`[^`]*`|[^\]`])*\]\((?P<target>[^)\s#]+)(?:#L(?P<line>\d+))?[^)]*\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` does."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Of the site, served."""
    handler = functools.partial(_Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    fetched = {
        path.relative_to(site)
        for path in site.rglob("*.html")
        if re.search(r'(?:src|<link[^>]*href)="https?://', path.read_text())
    }
    assert not fetched, f"pages that load something from elsewhere: {fetched}"


def test_diagrams_are_drawn_without_the_internet(site: Path, address: str) -> None:
    drawn = [path for path in site.rglob("*.html") if '<pre class="mermaid">' in path.read_text()]
    assert {path.name for path in drawn} >= {"architecture.html", "state-machine.html"}
    asked: list[str] = []
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        path = testprograms.chromium(cache_root())
        with closing(playwright.chromium.launch(executable_path=path, args=arguments)) as chromium:
            page = chromium.new_page()
            page.on("request", lambda request: asked.append(request.url))
            for document in drawn:
                count = document.read_text().count('<pre class="mermaid">')
                page.goto(f"{address}/{document.relative_to(site)}")
                # The theme puts the picture where nothing can look into, in place of the text.
                expect(page.locator("div.mermaid")).to_have_count(count, timeout=60_000)
                for at in range(count):
                    box = page.locator("div.mermaid").nth(at).bounding_box()
                    assert box is not None
                    assert box["width"] > 200, f"{document.name}: {box}"
                    assert box["height"] > 60, f"{document.name}: {box}"
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]


def test_what_draws_is_as_its_makers_published_it() -> None:
    folder = ROOT / "docs/assets/mermaid"
    for name, entry in json.loads((folder / "versions.json").read_text())["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]


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


def test_every_example_is_explained() -> None:
    page = (ROOT / "docs" / "examples.md").read_text()
    files = [path for path in (ROOT / "examples").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert files
    missing = {str(path.relative_to(ROOT)) for path in files if f"](../{path.relative_to(ROOT)})" not in page}
    assert not missing, f"docs/examples.md does not say what they are for: {missing}"


def test_every_dated_page_is_in_the_list_of_what_was_measured() -> None:
    listed = (ROOT / "docs" / "results" / "index.md").read_text()
    pages = {p.name for p in (ROOT / "docs" / "results").glob("*.md")} - {"index.md"}
    assert not {name for name in pages if f"]({name})" not in listed}
