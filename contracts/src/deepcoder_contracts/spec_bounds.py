"""How large a spec may be that the operator reads: one beyond these bounds would fill its memory once parsed.

The API server takes any object that etcd stores, and templates may hold anything. The operator refuses such a run or
pool, and a plan names it before anything is applied. Pure.
"""

from __future__ import annotations

from typing import Any

_MOST_VALUES = 10_000
"""Largest number of values in a spec: fields of maps and elements of lists. A pod template has a few hundred."""

_MOST_CHARACTERS = 400 << 10
"""Largest number of characters of a spec's texts and fields' names."""

_MEND = "make its templates smaller"


def excess_of(spec: Any) -> str | None:
    """Return which bound a spec exceeds. Its levels are walked without recursion, because there may be thousands."""
    values = characters = 0
    rest = [spec]
    while rest:
        value = rest.pop()
        if isinstance(value, str):
            characters += len(value)
        elif isinstance(value, dict | list):
            values += len(value)
            if values > _MOST_VALUES:
                return f"spec holds more than {_MOST_VALUES} values (fields and elements of lists): {_MEND}"
            if isinstance(value, dict):
                characters += sum(map(len, value))
                value = value.values()
            rest.extend(value)
        if characters > _MOST_CHARACTERS:
            return f"spec holds more than {_MOST_CHARACTERS >> 10} KiB of text: {_MEND}"
    return None
