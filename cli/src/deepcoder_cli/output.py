"""Printing results: a table for people, JSON and YAML for programs, each with the same content.

Tables show text of others as `terminal` does. JSON and YAML have their own escapes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import yaml
from pydantic import BaseModel
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepcoder_cli.terminal import harmless, printable

_BEYOND_ASCII = re.compile(r"[^\n\x20-\x7e]")

_GAP = 3
"""Columns of space between two columns of a table."""


def document(value: Any, form: str) -> None:
    """Print a value as JSON or YAML."""
    text = plain(value)
    if form == "json":
        written = json.dumps(text, indent=2, ensure_ascii=False)
        sys.stdout.write(
            _BEYOND_ASCII.sub(lambda c: c[0] if harmless(c[0]) else json.dumps(c[0])[1:-1], written) + "\n"
        )
    else:
        shown = yaml.safe_dump(text, sort_keys=False, allow_unicode=True)
        if not all(map(harmless, shown)):  # YAML keeps marks that change the direction of the text after them
            shown = yaml.safe_dump(text, sort_keys=False)
        sys.stdout.write(shown)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, long: int = 0) -> None:
    """Print a table without a frame. A dash stands for an unknown value.

    Without a terminal, no value is folded: a program that reads the table from a pipe finds one row in each line. If
    the terminal is too narrow, each of the last `long` columns gets a line of its own below its row, unfolded, so
    that its value can be copied.
    """
    cells = [[cell(value) for value in row] for row in rows]
    width = Console().width if sys.stdout.isatty() else None
    lines = _drawn(columns, cells, None if long else width)
    if not long or width is None or all(cell_len(line) <= width for line in lines):
        sys.stdout.writelines(f"{line}\n" for line in lines)
        return
    head, *drawn = _drawn(columns[:-long], [row[:-long] for row in cells], None)
    sys.stdout.write(f"{head}\n")
    for line, row in zip(drawn, cells, strict=True):
        below = zip(columns[-long:], row[-long:], strict=True)
        sys.stdout.writelines([f"{line}\n", *(f"  {name} {value}\n" for name, value in below)])


def _drawn(columns: Sequence[str], cells: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Return the lines of a table that folds values beyond `width`; None: as wide as its widest values."""
    if width is None:
        rows = [[column.upper() for column in columns], *cells]
        width = sum(max(map(cell_len, column)) + _GAP for column in zip(*rows, strict=True))
    drawn = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="")
    for column in columns:
        drawn.add_column(column.upper(), overflow="fold")
    for row in cells:
        drawn.add_row(*map(Text, row))
    out = Console(width=width, highlight=False, markup=False, soft_wrap=False)
    with out.capture() as captured:
        out.print(drawn)
    return [line.rstrip() for line in captured.get().splitlines()]


def cell(value: Any) -> str:
    """Return a value as text for a table."""
    match value:
        case None | "":
            return "–"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
        case Enum():
            return str(value.value)
        case _:
            return printable(" ".join(str(value).split()))


def plain(value: Any) -> Any:
    """Return a value made of JSON's types."""
    match value:
        case BaseModel():
            return value.model_dump(mode="json", by_alias=True, exclude_none=True)
        case Enum():
            return plain(value.value)
        case datetime():
            return value.isoformat()
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): plain(each) for key, each in value.items()}
        case list() | tuple():
            return [plain(each) for each in value]
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            return value


def age(time: datetime | str | None, now: datetime | None = None) -> str | None:
    """Return how long ago a time was, as kubectl shows it."""
    if not time:
        return None
    since = datetime.fromisoformat(time) if isinstance(time, str) else time
    seconds = int(((now or datetime.now(UTC)) - since.astimezone(UTC)).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{max(seconds, 0)}s"
