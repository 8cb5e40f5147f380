"""Parses a page of a list object by object, so that only one whole object at a time is in memory.

etcd stores objects of up to 1.5 MiB, and a parsed one may take thirty times its JSON. Whoever may create a run can fill
one like that, so a page of such objects would take more than the operator's memory. Raises `ValueError` if the text is
not such a page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

Object = dict[str, Any]

_SPACE = re.compile(r"[ \t\r\n]*")
_value = json.JSONDecoder().raw_decode


def parse_page(data: bytes, keep: Callable[[Object], Object]) -> Object:
    """Return the page, with what `keep` returns of each object in place of the object."""
    text = data.decode()
    page: Object = {}
    at = _after(text, 0, "{")
    while True:
        key, at = _value(text, at)
        at = _after(text, at, ":")
        if key == "items" and text.startswith("[", at):
            page[key], at = _items(text, at, keep)
        else:
            page[str(key)], at = _value(text, at)
        at = _skip(text, at)
        if text.startswith("}", at):
            return page
        at = _after(text, at, ",")


def _items(text: str, at: int, keep: Callable[[Object], Object]) -> tuple[list[Object], int]:
    """Return what is kept of the objects of an array, and where the array ends."""
    kept: list[Object] = []
    at = _after(text, at, "[")
    if text.startswith("]", at):
        return kept, at + 1
    while True:
        item, at = _value(text, at)
        kept.append(keep(item))
        del item  # before the next one is parsed
        at = _skip(text, at)
        if text.startswith("]", at):
            return kept, at + 1
        at = _after(text, at, ",")


def _after(text: str, at: int, mark: str) -> int:
    """Return the place after a mark and the space around it."""
    at = _skip(text, at)
    if not text.startswith(mark, at):
        raise ValueError(f"no {mark} at character {at} of a page")
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at
