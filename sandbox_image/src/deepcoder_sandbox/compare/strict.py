"""strict: tokens compared as written, in order, wherever the white space falls.

With a tolerance, tokens that both read as finite decimal numbers may differ by at most
`tolerance × max(1, |expected|)`; all others must still be equal as written.
"""

from __future__ import annotations

import math
import re

_WHITE_SPACE = b" \t\n\r\x0b\x0c"
_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_EXCESS_BYTES = 1 << 20


def compare_text(got: bytes, expected: str, tolerance: float | None = None) -> str | None:
    """Return None if `got` is right, else where it first differs."""
    wanted = expected.encode()
    if got == wanted:
        return None
    if tolerance is None:
        if got.translate(None, _WHITE_SPACE) == wanted.translate(None, _WHITE_SPACE) and got.split() == wanted.split():
            return None
    elif len(got) > 16 * len(wanted) + _EXCESS_BYTES:
        return f"{len(got)} bytes of output are far more than expected"
    return _first_difference(got, wanted, tolerance)


def _first_difference(got: bytes, wanted: bytes, tolerance: float | None) -> str | None:
    expected_tokens = wanted.split()
    tokens = got.split(None, len(expected_tokens))
    for index, expected in enumerate(expected_tokens):
        if index >= len(tokens):
            return f"the output ends after {index} tokens"
        if tokens[index] != expected and not (tolerance is not None and _close(tokens[index], expected, tolerance)):
            return f"token {index + 1} differs: got {excerpt(tokens[index])}"
    if len(tokens) > len(expected_tokens):
        return f"there is output after the {len(expected_tokens)} tokens expected"
    return None


def _close(got: bytes, expected: bytes, tolerance: float) -> bool:
    if len(got) > 400 or not (_NUMBER.fullmatch(got) and _NUMBER.fullmatch(expected)):
        return False
    return numbers_close(float(got), float(expected), tolerance)


def numbers_close(got: float, expected: float, tolerance: float) -> bool:
    """Whether two numbers agree within `tolerance × max(1, |expected|)`; infinities only with themselves."""
    if got == expected:
        return True
    if not (math.isfinite(got) and math.isfinite(expected)):
        return False
    return abs(got - expected) <= tolerance * max(1.0, abs(expected))


def excerpt(text: bytes, limit: int = 80) -> str:
    """Return a bounded, printable form of what a program wrote."""
    shown = ascii(text[:limit].decode("utf-8", "replace"))
    return shown if len(text) <= limit else f"{shown}…"
