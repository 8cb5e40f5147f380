"""What the generators of pages share: writing a page or comparing it with `--check`, and cells of Markdown tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def main(page: Path, text: str, about: str | None) -> int:
    """Write the page, or with `--check` report that it is outdated; returns the exit code."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--check", action="store_true", help="write nothing")
    if not parser.parse_args().check:
        page.write_text(text)
        return 0
    if page.exists() and page.read_text() == text:
        return 0
    print(f"{page.relative_to(ROOT)} is out of date: run make generate", file=sys.stderr)
    return 1


_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} entries",
    "maxItems": "at most {} entries",
    "maxProperties": "at most {} entries",
}


def bounds(field: Mapping[str, Any]) -> list[str]:
    """The bounds of a JSON schema in words, as text of a cell. In a CRD, a boolean makes a bound exclusive."""
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if field.get(exclusive) is True:
            field = {k: v for k, v in field.items() if k != bound} | {exclusive: field[bound]}
    told = [words.format(field[key]) for key, words in _BOUNDS.items() if key in field]
    return [*told, f"matches {code(field['pattern'])}"] if "pattern" in field else told


def code(text: str) -> str:
    """Code as text of a cell. `|` divides cells even between backticks, so such text is escaped instead."""
    if "|" not in text:
        return f"`{text}`"
    return f"<code>{''.join(c if c.isalnum() or c in ' /:.-' else f'&#{ord(c)};' for c in text)}</code>"


def escaped(text: str) -> str:
    """Plain text as text of a cell."""
    return text.replace("|", "&#124;").replace("<", "&lt;")


def joined(lines: list[str]) -> str:
    """The text of a page, from its lines."""
    return "\n".join(line.rstrip() for line in lines) + "\n"
