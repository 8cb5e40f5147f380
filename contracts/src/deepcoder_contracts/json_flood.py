"""Recognizes JSON that is a flood of values instead of text: parsing it takes a hundred times its memory.

So does a flood of unknown or wrong fields, each of which is an error of its own. A document is therefore looked through
before it is parsed, in one pass that keeps nothing.
"""

from __future__ import annotations

import re
from enum import Enum, auto

_SHORTEST_TEXT_BYTES = 3  # two quotes, and what separates it from the next one

_TEXT = re.compile(rb'"[^"\\]*+(?:\\.?+[^"\\]*+)*+"?+', re.DOTALL)
"""Matches a JSON string, also an unterminated one: searching for its end again and again would be slow."""


class Flood(Enum):
    """What a document has too much of."""

    TEXTS = auto()
    STRUCTURE = auto()


def flood(document: bytes | bytearray, *, texts: int, structure_bytes: int) -> Flood | None:
    """Return what a document has too much of: JSON strings, names of fields included, or bytes outside of them."""
    if len(document) <= min(texts * _SHORTEST_TEXT_BYTES, structure_bytes):
        return None
    outside = end = 0
    for number, text in enumerate(_TEXT.finditer(document)):
        outside += text.start() - end
        end = text.end()
        if outside > structure_bytes:
            return Flood.STRUCTURE
        if number >= texts:
            return Flood.TEXTS
    outside += len(document) - end
    return Flood.STRUCTURE if outside > structure_bytes else None
