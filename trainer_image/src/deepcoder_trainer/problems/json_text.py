"""Parses JSON text from untrusted files, and limits the number of values before any of them is created.

A text of nothing but empty lists takes nearly thirty times its size as Python values, and almost no space in a
compressed file. Values are counted by the marks between them. Marks within strings count too, but no set comes near the
limit.

Python refuses to parse or print integers of more than 4,300 digits, but some tests of functions have them. Here, as in
the judge, an integer may have 50,000 digits.

Raises TooManyValues, and what json.loads and json.dumps raise.
"""

from __future__ import annotations

import json
from typing import Any

from deepcoder_contracts.strict import parse_json

MAX_VALUES = 32 << 20
"""Largest number of values in one text. They take at most two gigabytes."""
_MARKS = "[{,:"
_DIGITS_AT_ONCE = 4000


class TooManyValues(ValueError):
    """A text with more than `MAX_VALUES` values."""


def check_values(text: str) -> None:
    """Raise TooManyValues if a text has too many values, without creating any."""
    # A text of at most MAX_VALUES characters cannot have more values. This decides for nearly all texts.
    if len(text) > MAX_VALUES and sum(map(text.count, _MARKS)) > MAX_VALUES:
        raise TooManyValues(f"more than {MAX_VALUES:,} values in one row: split its tests")


def value_of(text: str) -> Any:
    """Parse a text. Raises ValueError (TooManyValues included) and RecursionError."""
    check_values(text)
    return parse_json(text)


def text_of(value: Any) -> str:
    """Return the JSON text of a value that `value_of` returned."""
    try:
        return json.dumps(value)
    except ValueError:  # an integer too long for the interpreter
        if isinstance(value, list):
            return f"[{', '.join(map(text_of, value))}]"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{json.dumps(key)}: {text_of(item)}' for key, item in value.items())}}}"
        return _digits(value)


def _digits(number: int) -> str:
    """Return str(number), converted in pieces below the interpreter's limit of digits."""
    rest, pieces = abs(number), []
    while rest:
        rest, piece = divmod(rest, 10**_DIGITS_AT_ONCE)
        pieces.append(f"{piece:0{_DIGITS_AT_ONCE}d}")
    return ("-" if number < 0 else "") + "".join(reversed(pieces)).lstrip("0")
