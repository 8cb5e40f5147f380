"""Implements `strict` scoring: output tokens are compared as written, returned values as JSON.

`stdin`: tokens must match in order; white space does not matter. With a tolerance, two tokens that both read as finite
decimal numbers may differ by at most `tolerance × max(1, |expected|)`; all others must be equal as written. `function`:
JSON values are compared; tuples count as arrays, dictionary keys as strings, and true is not 1.

This module is pure and part of the protocol: verdicts must not depend on where a program ran, so every back end
compares on the trusted side, with these functions. A program's output is hostile. Work and memory are bounded by the
size of the expected output, however long the program's output is. Values that cannot be compared raise ValueError,
ArithmeticError or RecursionError.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

_WHITE_SPACE = b" \t\n\r\x0b\x0c"
_NUMBER = re.compile(rb"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_EXCESS_BYTES = 1 << 20
_DIGITS_AT_ONCE, _MAX_DIGITS = 4000, 50_000


def compare_text(got: bytes, expected: str, tolerance: float | None = None) -> str | None:
    """Return None if `got` is right, or a description of the first difference."""
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
    value = float(got)  # infinite if it is too large for a float: then only the same text is right
    return math.isfinite(value) and numbers_close(value, float(expected), tolerance)


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


class OddDict:
    """A dictionary with keys that are not strings. JSON has no such object, but encoders write most keys as strings."""

    def __init__(self, pairs: list[tuple[Any, Any]]) -> None:
        self.pairs = pairs

    def as_json(self) -> dict[str, Any] | None:
        """Return the dictionary with keys as JSON encodes them, or None if a key cannot be encoded."""
        keys = [_json_key(key) for key, _ in self.pairs]
        if any(key is None for key in keys):
            return None
        return {str(key): item for key, (_, item) in zip(keys, self.pairs, strict=True)}


def parse_json(text: str) -> Any:
    """Parse JSON, with integers of up to 50,000 digits. Raises ValueError and RecursionError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer too long for the interpreter
        return json.loads(text, parse_int=_parse_int)


def _parse_int(digits: str) -> int:
    """Convert digits to an integer in pieces that are below the interpreter's limit on integer strings."""
    if len(digits) <= _DIGITS_AT_ONCE:
        return int(digits)
    sign, digits = (-1, digits[1:]) if digits.startswith("-") else (1, digits)
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer of more than {_MAX_DIGITS} digits")
    value = 0
    for start in range(0, len(digits), _DIGITS_AT_ONCE):
        piece = digits[start : start + _DIGITS_AT_ONCE]
        value = value * 10 ** len(piece) + int(piece)
    return sign * value


def equal_as_json(got: Any, expected: Any, tolerance: float | None = None) -> bool:
    """Whether two values are equal as JSON. Tuples count as arrays, dictionary keys as strings, and true is not 1."""
    if isinstance(expected, bool) or expected is None:
        return got is expected
    if isinstance(expected, int | float):
        return _numbers_equal(got, expected, tolerance)
    if isinstance(expected, str):
        return isinstance(got, str) and got == expected
    if isinstance(expected, list):
        if not isinstance(got, list | tuple) or len(got) != len(expected):
            return False
        kinds = set(map(type, expected))
        if (kinds == {str} or (kinds == {int} and tolerance is None)) and kinds == set(map(type, got)):
            return list(got) == expected  # avoids the loop below for most long lists
        return all(equal_as_json(g, e, tolerance) for g, e in zip(got, expected, strict=True))
    if isinstance(got, OddDict) and len(got.pairs) == len(expected):
        got = got.as_json()
    if not isinstance(got, dict) or got.keys() != expected.keys():
        return False
    return all(equal_as_json(got[key], item, tolerance) for key, item in expected.items())


def _json_key(key: Any) -> str | None:
    """Return a dictionary's key as JSON encodes it, or None if JSON cannot encode it."""
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool | float) or (isinstance(key, int) and abs(key) < 1 << 63):
        return json.dumps(key)
    return None


def _numbers_equal(got: Any, expected: float, tolerance: float | None) -> bool:
    if isinstance(got, bool) or not isinstance(got, int | float):
        return False
    if tolerance is None:
        return got == expected or (_is_nan(got) and _is_nan(expected))
    try:
        return numbers_close(float(got), float(expected), tolerance)
    except OverflowError:
        return got == expected


def _is_nan(value: float) -> bool:
    return isinstance(value, float) and math.isnan(value)
