"""Numbers in a status: decimal strings without an exponent."""

from __future__ import annotations

import math
from collections.abc import Iterable

_LARGEST = 1e20
_SMALLEST = 1e-20
"""Smaller values are shown as 0. A DecimalString has room for both bounds."""


def decimal(value: float, digits: int) -> str:
    """Format a total with at most this many digits after the point."""
    text = f"{value:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if digits else text
    return "0" if text == "-0" else text


def measured(value: float) -> str | None:
    """Format a measured value with four digits after the point, or four significant digits if it is small.

    Returns None for values that a decimal string cannot show: not finite, or too large.
    """
    if not math.isfinite(value) or abs(value) >= _LARGEST:
        return None
    if abs(value) < _SMALLEST:
        return "0"
    return decimal(value, max(4, 3 - math.floor(math.log10(abs(value)))))


def measurements(values: Iterable[tuple[str, float]]) -> dict[str, str]:
    """Format measured values by name, without those that cannot be shown."""
    shown = ((name, measured(value)) for name, value in values)
    return {name: text for name, text in shown if text is not None}
