"""What is bundled is what its makers published, and the page loads nothing from anywhere else."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from deepcoder_web.app import HEADERS, STATIC

VENDOR = STATIC / "vendor"
BUNDLED = json.loads((VENDOR / "versions.json").read_text())


@pytest.mark.parametrize("name", sorted(BUNDLED["files"]))
def test_bundled_file_is_unchanged(name: str) -> None:
    assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == BUNDLED["files"][name]["sha256"]


def test_every_bundled_file_is_listed_and_has_its_licence() -> None:
    there = {p.name for p in VENDOR.iterdir()} - {"versions.json"}
    licences = {f"LICENSE.{entry['package']}" for entry in BUNDLED["files"].values()}
    assert there == set(BUNDLED["files"]) | licences


def test_nothing_is_loaded_from_another_place() -> None:
    for path in [STATIC / "index.html", STATIC / "app.css", *sorted((STATIC / "js").glob("*.js"))]:
        text = re.sub(r"^\s*//.*$", "", path.read_text(), flags=re.MULTILINE)
        assert not re.search(r"https?://", text), path.name
        assert not re.search(r"innerHTML|dangerouslySet|eval\(", text), path.name


def test_the_policy_lets_no_inline_script_and_no_other_origin_in() -> None:
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert not re.search(r"unsafe|http|\*", policy)
    index = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|style=|\son[a-z]+=", index)


def test_modules_import_what_is_there() -> None:
    for path in sorted((STATIC / "js").glob("*.js")):
        for target in re.findall(r'from "(\.[^"]+)"', path.read_text()):
            assert Path(path.parent / target).resolve().is_file(), f"{path.name} imports {target}"
