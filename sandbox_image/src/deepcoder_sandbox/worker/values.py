"""A function's return value as JSON that keeps Python's types apart.

JSON alone would turn a tuple into a list and an object with an obliging `__eq__` into whatever it imitates. Here plain
values are written as themselves, other built-in types get a tag, and anything else is opaque: its type's name, equal to
nothing. Read by `deepcoder_sandbox.compare.values` on the other side of the wall.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, defaultdict
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_BYTES = 8 << 20
"""Longest encoding that the judge reads."""

_JSON_INTEGERS = 1 << 63
_PLAIN_DICTS = (dict, OrderedDict, defaultdict, Counter)


def encode(value: Any) -> bytes:
    """Return the value's encoding. Too deep, or circular: opaque."""
    try:
        return json.dumps(_tagged(value), separators=(",", ":")).encode()
    except RecursionError:
        return json.dumps({"o": "a value nested too deeply"}).encode()


def _tagged(value: Any) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is str or kind is float:
        return value
    if kind is int:
        return value if -_JSON_INTEGERS < value < _JSON_INTEGERS else {"i": hex(value)}
    if kind is list:
        return [_tagged(item) for item in value]
    if kind is tuple:
        return {"t": [_tagged(item) for item in value]}
    if kind in _PLAIN_DICTS:
        return {"d": [[_tagged(key), _tagged(item)] for key, item in dict.items(value)]}
    if kind is Fraction:
        return {"F": [hex(value.numerator), hex(value.denominator)]}
    if kind is Decimal:
        return {"D": str(value)}
    if kind is complex:
        return {"c": [value.real, value.imag]}
    return _subclass(value, kind)


def _subclass(value: Any, kind: type) -> Any:
    """A subclass that compares as its base does is its base (named tuples, int enums); any other is opaque."""
    for base in (bool, int, float, str, list, tuple):
        if issubclass(kind, base):
            if kind.__eq__ is base.__eq__:
                return _tagged(_as_base(value, base))
            break
    return {"o": f"{kind.__module__}.{kind.__qualname__}"[:200]}


def _as_base(value: Any, base: type) -> Any:
    if base is tuple:
        return tuple(tuple.__iter__(value))
    if base is list:
        return list(list.__iter__(value))
    if base is str:
        return str.__str__(value)
    return int.__int__(value) if base is int else float.__float__(value)
