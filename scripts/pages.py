"""What generated pages have in common: written, or with `--check` compared; and cells of Markdown tables."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def main(page: Path, text: str, about: str | None) -> int:
    """Write the page, or with `--check` say that it is old: the exit code."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--check", action="store_true", help="write nothing")
    if not parser.parse_args().check:
        page.write_text(text)
        return 0
    if page.exists() and page.read_text() == text:
        return 0
    print(f"{page.relative_to(ROOT)} is not what it is made from: run make generate", file=sys.stderr)
    return 1


def escaped(text: str) -> str:
    """A cell's text."""
    return text.replace("|", "&#124;").replace("<", "&lt;")


def joined(lines: list[str]) -> str:
    """A page of lines."""
    return "\n".join(line.rstrip() for line in lines) + "\n"
