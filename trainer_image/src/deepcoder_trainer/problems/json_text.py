"""JSON text from files that nobody vouches for: how many values it may hold is bounded before one of them is made.

A text that is nothing but empty lists takes near thirty times its size as Python values, and next to none of a
compressed file. Values are counted by the marks between them; those within texts count, too, which no set comes near.

Fails with TooManyValues, and as json.loads does.
"""

from __future__ import annotations

import json
from typing import Any

MAX_VALUES = 32 << 20
"""Most values of one text, which take two gigabytes at most."""
_MARKS = "[{,:"


class TooManyValues(ValueError):
    """A text with more values than are read."""


def check_values(text: str) -> None:
    """Raise TooManyValues before anything is made of a text that has too many."""
    # One that is no longer than so many characters cannot have them: nearly all are told by that.
    if len(text) > MAX_VALUES and sum(map(text.count, _MARKS)) > MAX_VALUES:
        raise TooManyValues(f"more than {MAX_VALUES:,} values in one row: split its tests")


def value_of(text: str) -> Any:
    """The value that a text is. Raises ValueError, RecursionError."""
    check_values(text)
    return json.loads(text)
