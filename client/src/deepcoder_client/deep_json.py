"""Parses the API server's JSON, also that of an object that somebody has nested too deeply for Python's parser.

The API server stores up to ten thousand levels, for example in a run's pod template. Python's parser gives up at about
a thousand, and with it a whole list of runs. Here what lies deeper than `LEVELS` becomes null. Raises ValueError for
text that is not JSON.
"""

from __future__ import annotations

import json
import re
from typing import Any

LEVELS = 100
"""Deeper than any real object, and few enough for all that handles a parsed one."""
_MARK = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[\]{}]')
"""A string or a bracket. Possessive: else the matcher would keep a state for each character of a string."""


def parsed(text: str | bytes) -> Any:
    """Return the parsed document. Only one that is nested too deeply is cut."""
    try:
        return json.loads(text)
    except RecursionError:
        return json.loads(_cut(text.decode() if isinstance(text, bytes) else text))


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
