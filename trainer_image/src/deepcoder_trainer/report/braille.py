"""Draws curves as text for a terminal: Braille characters with eight dots each, at the requested width."""

from __future__ import annotations

from collections.abc import Sequence

_BLANK = 0x2800
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bits of the dots by column and row within a character."""


def curve(
    values: Sequence[float],
    width: int,
    height: int,
    *,
    low: float | None = None,
    high: float | None = None,
    boundaries: Sequence[int] = (),
) -> list[str]:
    """Return the lines of a plot of `values`, `width` × `height` characters, labelled with the axis limits.

    Each position of `values` in `boundaries`, at which a stage begins, gets a dotted vertical line. Default limits are
    the smallest and largest value.
    """
    if not values or width < 1 or height < 1:
        return []
    low = min(values) if low is None else low
    high = max(values) if high is None else high
    span = (high - low) or 1.0
    columns, rows = 2 * width, 4 * height
    cells = [[0] * width for _ in range(height)]

    def dot(column: int, row: int) -> None:
        cells[row // 4][column // 2] |= _DOTS[column % 2][row % 4]

    def column_of(position: float) -> int:
        return round(position / max(1, len(values) - 1) * (columns - 1))

    def row_of(value: float) -> int:
        return round((1 - min(1.0, max(0.0, (value - low) / span))) * (rows - 1))

    for boundary in boundaries:
        for row in range(0, rows, 2):
            dot(column_of(boundary - 0.5), row)
    previous: tuple[int, int] | None = None
    for position, value in enumerate(values):
        point = (column_of(position), row_of(value))
        for column, row in _line(previous or point, point):
            dot(column, row)
        previous = point
    ends = {0: f"{high:.3g}", height - 1: f"{low:.3g}"}
    margin = max(len(text) for text in ends.values())
    return [
        f"{ends.get(number, ''):>{margin}} {''.join(chr(_BLANK + cell) for cell in row)}"
        for number, row in enumerate(cells)
    ]


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the dots of a line from start to end, both included."""
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
    if steps == 0:
        return [end]
    return [
        (round(start[0] + (end[0] - start[0]) * n / steps), round(start[1] + (end[1] - start[1]) * n / steps))
        for n in range(steps + 1)
    ]
