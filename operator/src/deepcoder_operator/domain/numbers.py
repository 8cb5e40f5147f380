"""Numbers as a status has them: decimal strings, without an exponent."""

from __future__ import annotations

import math
from collections.abc import Iterable

_LARGEST = 1e20
_SMALLEST = 1e-20
"""Below, a value is shown as 0. A DecimalString has room for both."""


def decimal(value: float, digits: int) -> str:
    """A total with at most this many digits after the point."""
    text = f"{value:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if digits else text
    return "0" if text == "-0" else text


def measured(value: float) -> str | None:
    """A measured value: four digits after the point, more for a small one, so that four of them say something.

    None for what no decimal string shows: what is not finite, or out of all proportion.
    """
    if not math.isfinite(value) or abs(value) >= _LARGEST:
        return None
    if abs(value) < _SMALLEST:
        return "0"
    return decimal(value, max(4, 3 - math.floor(math.log10(abs(value)))))


def measurements(values: Iterable[tuple[str, float]]) -> dict[str, str]:
    """Measured values by name, without those that cannot be shown."""
    shown = ((name, measured(value)) for name, value in values)
    return {name: text for name, text in shown if text is not None}
