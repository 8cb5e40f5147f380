"""Updates docs/acceptance.md with the results of a test run, from its JUnit files.

    pytest … --junit-xml=FILE; scripts/acceptance.py FILE…     writes the last column of the rows that name these tests
    scripts/acceptance.py --check                              checks that the tests and make targets in rows exist

A row stays as it is if the files have only some of its tests. Exit status 1 if a test of a row failed, or a row names
something that does not exist.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/acceptance.md"
TEST = re.compile(r"`((?:[\w-]+/)*test_\w+\.py)`")
TARGET = re.compile(r"`make ([\w-]+)[^`]*`")


@dataclass
class Seen:
    """Results of a test file."""

    passed: int = 0
    skipped: int = 0
    failed: int = 0
    seconds: float = 0.0

    def add(self, other: Seen) -> None:
        """Add the results of another file."""
        self.passed += other.passed
        self.skipped += other.skipped
        self.failed += other.failed
        self.seconds += other.seconds


def read(files: list[Path], known: dict[str, str]) -> dict[str, Seen]:
    """Results by path of the test file; `known` maps module names to paths."""
    found: dict[str, Seen] = defaultdict(Seen)
    for file in files:
        for case in ElementTree.parse(file).iter("testcase"):  # noqa: S314 - written by our own pytest
            module = next((part for part in case.get("classname", "").split(".") if part in known), None)
            if module is None:
                continue
            tags = {child.tag for child in case}
            seen = found[known[module]]
            seen.seconds += float(case.get("time", 0))
            if tags & {"failure", "error"}:
                seen.failed += 1
            elif "skipped" in tags:
                seen.skipped += 1
            else:
                seen.passed += 1
    return found


def filled(page: str, found: dict[str, Seen], today: str) -> str:
    """The page with a new last column in each row that `found` covers."""
    lines = []
    for line in page.splitlines():
        cells = line.split(" | ")
        tests = TEST.findall(cells[1]) if line.startswith("| ") and len(cells) == 3 else []
        if tests and all(test in found for test in tests):
            sum_ = Seen()
            for test in tests:
                sum_.add(found[test])
            line = " | ".join([*cells[:2], f"{today}: {_told(sum_)} |"])
        lines.append(line)
    return "\n".join(lines) + "\n"


def _told(seen: Seen) -> str:
    parts = [f"**{seen.failed} failed**"] if seen.failed else []
    parts += [f"{seen.passed} passed"] + ([f"{seen.skipped} skipped"] if seen.skipped else [])
    return f"{', '.join(parts)}, {seen.seconds:.0f} s"


def missing(page: str) -> list[str]:
    """What rows name and does not exist."""
    targets = re.findall(r"^([\w%-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    absent = [test for test in TEST.findall(page) if not (ROOT / test).is_file()]
    return absent + [
        f"make {name}" for name in TARGET.findall(page) if name not in targets and not name.startswith("bench-")
    ]


def main() -> int:
    """Update or check the page; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="JUnit files")
    parser.add_argument("--check", action="store_true", help="only look for tests and targets that do not exist")
    options = parser.parse_args()
    page = PAGE.read_text()
    absent = missing(page)
    for name in absent:
        print(f"docs/acceptance.md names {name}, which does not exist", file=sys.stderr)
    if options.check:
        return 1 if absent else 0
    ours = [path for place in ("*/tests", "tests") for path in ROOT.glob(f"{place}/**/test_*.py")]
    known = {path.stem: str(path.relative_to(ROOT)) for path in ours}
    page = filled(page, read(options.files, known), datetime.date.today().isoformat())
    PAGE.write_text(page)
    return 1 if absent or "failed**" in page else 0


if __name__ == "__main__":
    sys.exit(main())
