"""Generates docs/chart-values.md from values.yaml, in which a `# --` comment describes the key below it.

`python scripts/chart_values.py` writes the page; `--check` fails if it differs. Values without a description fail both.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pages
import yaml

VALUES = pages.ROOT / "helm" / "deepcoder-operator" / "values.yaml"
PAGE = pages.DOCS / "chart-values.md"
_KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z][A-Za-z0-9]*):")


class Value(NamedTuple):
    """One value, by its path."""

    path: str
    default: str
    description: str


def values(text: str) -> Iterator[Value]:
    """All values with a description, and all leaves without one, with an empty description."""
    tree = yaml.safe_load(text)
    described: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        words = line.strip()
        if words.startswith("# --"):
            comment = [words.removeprefix("# --").strip()]
        elif words.startswith("#") and comment:
            comment.append(words.removeprefix("#").strip())
        elif (found := _KEY.match(line)) is not None:
            indent = len(found["indent"])
            stack = [each for each in stack if each[0] < indent] + [(indent, found["key"])]
            described[".".join(key for _, key in stack)] = " ".join(comment)
            comment = []
        elif not words:
            comment = []
    for path, text_of in described.items():
        value = tree
        for key in path.split("."):
            value = value[key] if isinstance(value, dict) and key in value else None
        nested = isinstance(value, dict) and any(other.startswith(f"{path}.") for other in described)
        below = any(path.startswith(f"{other}.") and described[other] for other in described)
        if text_of or not (nested or below):
            yield Value(path, "" if nested else json.dumps(value), text_of)


def page(text: str) -> str:
    """The text of the page."""
    rows = [
        f"| `{v.path}` | {f'`{v.default}`' if v.default else ''} | {pages.escaped(v.description)} |"
        for v in values(text)
    ]
    lines = [
        "# Values of the chart",
        "",
        "Generated from [values.yaml](../helm/deepcoder-operator/values.yaml) by `make generate`. When you install the",
        "chart, its schema refuses any other name or type.",
        "",
        "| value | default | what |",
        "|---|---|---|",
        *rows,
    ]
    return pages.joined(lines)


def main() -> int:
    """Write or check the page."""
    text = VALUES.read_text()
    if bare := [v.path for v in values(text) if not v.description]:
        print(f"values.yaml: no `# --` comment above {', '.join(bare)}", file=sys.stderr)
        return 1
    return pages.main(PAGE, page(text), __doc__)


if __name__ == "__main__":
    sys.exit(main())
