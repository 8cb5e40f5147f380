"""Encodes a function's return value as JSON that preserves Python's types.

Plain JSON would turn a tuple into a list, and an object with a permissive `__eq__` into whatever it imitates. Here
plain values are written as they are, other built-in types get a tag, and everything else is opaque: only the name of
its type, which equals nothing. `deepcoder_sandbox.compare.values` reads it on the other side of the boundary.
"""

from __future__ import annotations

import json
import math
import sys
from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, UserString, defaultdict
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

MAX_BYTES = 8 << 20
"""Longest encoding that the judge reads."""

_JSON_NAN = json.loads("NaN")
"""The one object that every NaN in JSON becomes: in a list it equals itself, because items are compared by identity."""
_JSON_INTEGERS = 1 << 63
_ALWAYS_PLAIN = {bool, str, type(None)}
_PLAIN_DICTS = (dict, OrderedDict, defaultdict, Counter)
_WRAPPERS: dict[type, Callable[[Any], Any]] = {
    ChainMap: dict,
    MappingProxyType: dict,
    UserDict: lambda value: value.data,
    UserList: lambda value: value.data,
    UserString: lambda value: value.data,
}
_ENCODER = json.JSONEncoder(separators=(",", ":"), check_circular=False)  # what it gets has no cycles


def encode(value: Any) -> bytes:
    """Encode the value; opaque if it is too deep or circular."""
    try:
        return _ENCODER.encode(_tagged(value)).encode()
    except RecursionError:
        return json.dumps({"o": "a value nested too deeply"}).encode()


def _tagged(value: Any) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is float:
        return value if value == value or value is _JSON_NAN else {"n": 0}
    if kind is int:
        return value if -_JSON_INTEGERS < value < _JSON_INTEGERS else {"i": hex(value)}
    if kind is list:
        return value if _all_plain(value) else [_tagged(item) for item in value]
    if kind is tuple:
        return {"t": [_tagged(item) for item in value]}
    if kind in _PLAIN_DICTS:
        return {"d": [[_tagged(key), _tagged(item)] for key, item in dict.items(value)]}
    if kind is complex:
        return {"c": [value.real, value.imag]}
    return _other(value, kind)


def _all_plain(items: list[Any]) -> bool:
    """Return whether a list's items are written as they are, as in most long lists; found without a loop."""
    kinds = set(map(type, items))
    if kinds == {int}:
        return bool(min(items) > -_JSON_INTEGERS and max(items) < _JSON_INTEGERS)
    if kinds == {float}:
        return not any(map(math.isnan, items))
    return kinds <= _ALWAYS_PLAIN


def _other(value: Any, kind: type) -> Any:
    """Encode a subclass that compares as its base as that base (named tuples, int enums), a wrapper as its content.

    Wrappers of the standard library and numpy's numbers equal plain values, but JSON would not write them. Anything
    else is opaque.
    """
    for base in (bool, int, float, str, list, tuple, dict):
        if issubclass(kind, base):
            if kind.__eq__ is base.__eq__:
                return _tagged(_as_base(value, base))
            break
    if kind in _WRAPPERS:
        return {"w": _tagged(_WRAPPERS[kind](value))}
    if kind is _loaded("fractions", "Fraction"):
        return {"F": [hex(value.numerator), hex(value.denominator)]}
    if kind is _loaded("decimal", "Decimal"):
        return {"D": str(value)}
    numpy = sys.modules.get("numpy")
    if numpy is not None and kind.__module__ == "numpy" and isinstance(value, numpy.bool_ | numpy.number):
        plain = value.item()
        if type(plain) is not kind:
            return {"w": _tagged(plain)}
    return {"o": f"{kind.__module__}.{kind.__qualname__}"[:200]}


def _loaded(module: str, name: str) -> type | None:
    """Return a type of a module if this program has loaded that, else None."""
    return getattr(sys.modules.get(module), name, None)


def _as_base(value: Any, base: type) -> Any:
    if base is tuple:
        return tuple(tuple.__iter__(value))
    if base is list:
        return list(list.__iter__(value))
    if base is dict:
        return dict(dict.items(value))
    if base is str:
        return str.__str__(value)
    return int.__int__(value) if base is int else float.__float__(value)
