"""Bounds of fields in the generated references: told as numbers, in either dialect of a schema."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import pages  # noqa: E402


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"minimum": 0, "maximum": 1}, ["at least 0", "at most 1"]),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 1}, ["above 0", "below 1"]),
        ({"minimum": 0, "exclusiveMinimum": True, "maximum": 1, "exclusiveMaximum": True}, ["above 0", "below 1"]),
    ],
)
def test_bounds_that_are_exclusive_are_told_so(schema: dict[str, object], told: list[str]) -> None:
    assert pages.bounds(schema) == told


@pytest.mark.parametrize("page", ["api.md", "config.md"])
def test_bounds_on_the_pages_are_numbers(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    assert re.findall(r"(?:at least|at most|above|below) (?:True|False|None)", text) == []
