"""Parses the API server's JSON, also what somebody has made too deep for Python's parser, or too large once parsed.

The API server stores up to ten thousand levels, for example in a run's pod template. Python's parser gives up at about
a thousand, and with it a whole list of runs. Here what lies deeper than `LEVELS` becomes null.

An object has up to 1.5 MiB of JSON, and parsed up to thirty times as much. Of a list, the caller can keep a part of
each object before the next one is parsed. Raises ValueError for text that is not JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

LEVELS = 100
"""Deeper than any real object, and few enough for all that handles a parsed one."""
_MARK = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[\]{}]')
"""A string or a bracket. Possessive: else the matcher would keep a state for each character of a string."""


_SPACE = re.compile(r"[ \t\r\n]*")
_value = json.JSONDecoder().raw_decode


def parsed(text: str | bytes, keep: Callable[[Any], Any] | None = None) -> Any:
    """Return the parsed document. Only one that is nested too deeply is cut.

    With `keep`, it is a list of the API server, and what `keep` returns of each item takes its place.
    """
    text = text.decode() if isinstance(text, bytes) else text
    try:
        return json.loads(text) if keep is None else _listed(text, keep)
    except RecursionError:
        cut = _cut(text)
    return json.loads(cut) if keep is None else _listed(cut, keep)


def _listed(text: str, keep: Callable[[Any], Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    at = _after(text, 0, "{")
    while not text.startswith("}", at):
        name, at = _value(text, _after(text, at, ",") if found else at)
        at = _after(text, at, ":")
        if name == "items" and text.startswith("[", at):
            found[name], at = _items(text, at, keep)
        else:
            found[str(name)], at = _value(text, at)
        at = _skip(text, at)
    return found


def _items(text: str, at: int, keep: Callable[[Any], Any]) -> tuple[list[Any], int]:
    """Return what is kept of an array's items, and the place after the array."""
    kept: list[Any] = []
    at = _after(text, at, "[")
    while not text.startswith("]", at):
        item, at = _value(text, _after(text, at, ",") if kept else at)
        kept.append(keep(item))
        del item  # before the next one is parsed
        at = _skip(text, at)
    return kept, at + 1


def _after(text: str, at: int, mark: str) -> int:
    """Return the place after a mark and the space around it."""
    at = _skip(text, at)
    if not text.startswith(mark, at):
        raise ValueError(f"no {mark} at character {at}")
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _cut(text: str) -> str:
    pieces, depth, kept = [], 0, 0
    for mark in _MARK.finditer(text):
        if mark[0] in ("{", "["):
            depth += 1
            if depth == LEVELS + 1:
                pieces.append(text[kept : mark.start()])
        elif mark[0] in ("}", "]"):
            depth -= 1
            if depth == LEVELS:
                pieces.append("null")
                kept = mark.end()
    return "".join([*pieces, text[kept:]])
