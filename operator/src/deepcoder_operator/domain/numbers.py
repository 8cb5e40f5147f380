"""Numbers as a status has them: decimal strings."""

from __future__ import annotations

import math


def decimal(value: float, digits: int = 4) -> str:
    """A decimal string with at most this many digits after the point; 0 for what is not finite."""
    if not math.isfinite(value):
        return "0"
    text = f"{value:.{digits}f}".rstrip("0").rstrip(".") if digits else f"{value:.0f}"
    return "0" if text in ("-0", "") else text
