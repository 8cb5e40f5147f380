"""Return values of functions: decoding what a runner encoded, to be compared with the expected JSON.

Opaque values equal nothing, so an object with its own `__eq__` never gets a say. The encoding comes from a hostile
process, so the work is bounded by the size of what is expected: an encoding that is too long to equal it is not read,
and nothing that takes more than linear time is made of one that is (fractions are never reduced). What cannot be read,
or not be compared, raises ValueError or ArithmeticError: a wrong answer, never a failure of the judge.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from deepcoder_contracts.strict import OddDict

_TIMES_EXPECTED, _BYTES_MORE = 64, 1 << 16
"""An equal value's encoding is longer than the expected text by a factor of at most 50 (a float as a fraction)."""

_BRACKETS_A_VALUE, _BRACKETS_MORE = 4, 1000
"""An equal value's encoding has at most this many brackets for each value of the expected text. What is parsed into
lists and dictionaries takes a hundred times the memory of its encoding."""

_NESTED = {list, dict}
_NUMBERS = {"F", "D", "c"}
_FLOAT_BITS = 1100


class Opaque:
    """A value of a type that has no JSON counterpart. It equals nothing, not even itself."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.name}>"


def decode(encoded: bytes, expected: str, json_only: bool = False) -> Any:
    """Return the value, with tuples as tuples. With `json_only`, numbers that JSON does not have are opaque.

    Raises ValueError if the program broke the encoding, or if it is too long for the expected text.
    """
    if len(encoded) > _TIMES_EXPECTED * len(expected) + _BYTES_MORE:
        raise ValueError(f"returned {len(encoded)} bytes, which is far more than expected")
    brackets = encoded.count(b"[") + encoded.count(b"{")
    if brackets > _BRACKETS_MORE and brackets > _BRACKETS_A_VALUE * _most_values(expected) + _BRACKETS_MORE:
        raise ValueError("returned far more values than expected")
    try:
        return _untag(json.loads(encoded), json_only)
    except (RecursionError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError("the returned value cannot be read") from error


def _most_values(expected: str) -> int:
    """Return at least the number of values and keys in a JSON text, and of brackets in its strings."""
    return 1 + sum(map(expected.count, "[{,:\\"))


def _untag(value: Any, json_only: bool) -> Any:
    if isinstance(value, list):
        if _NESTED.isdisjoint(map(type, value)):
            return value
        return [_untag(item, json_only) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "i":
        return int(content, 16)
    if tag == "n":
        return float("nan")  # not the NaN of JSON
    if tag == "t":
        return tuple(_untag(item, json_only) for item in content)
    if tag == "d":
        return _pairs([(_untag(key, json_only), _untag(item, json_only)) for key, item in content])
    if tag == "w" and not json_only:
        return _untag(content, json_only)
    if tag in _NUMBERS and not json_only:
        return _number(tag, content)
    return Opaque(str(content)[:200])


def _number(tag: str, content: Any) -> Any:
    if tag == "F":
        return _fraction(int(content[0], 16), int(content[1], 16))
    return Decimal(content) if tag == "D" else complex(*content)


def _fraction(numerator: int, denominator: int) -> Any:
    """Return the integer or float that a fraction in lowest terms equals; opaque if it equals no JSON number."""
    if denominator < 1:
        raise ValueError("a fraction of another sort")
    if denominator == 1:
        return numerator
    power_of_two = denominator & (denominator - 1) == 0
    if power_of_two and max(numerator.bit_length(), denominator.bit_length()) <= _FLOAT_BITS:
        value = numerator / denominator
        if value.as_integer_ratio() == (numerator, denominator):
            return value
    return Opaque("Fraction")


def _pairs(pairs: list[tuple[Any, Any]]) -> Any:
    """Return a dict only if all keys are strings: with numbers chosen to collide, building it would take hours."""
    if all(isinstance(key, str) for key, _ in pairs):
        return dict(pairs)
    return OddDict(pairs)
