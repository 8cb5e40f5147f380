"""Which part of a response is the final answer of a mathematics problem: its last box.

Boxes within the reasoning do not count where the response says that reasoning is over. Pure; whether two answers are
the same number is for a verifier.
"""

from __future__ import annotations

import re

_BOX = re.compile(r"\\f?boxed\s*\{")
_THOUGHT = "</think>"


def last_boxed(response: str) -> str | None:
    r"""Content of the last whole `\boxed{…}`, None without one."""
    text = response[response.rfind(_THOUGHT) + 1 :] if _THOUGHT in response else response
    for opening in reversed(list(_BOX.finditer(text))):
        depth = 1
        for position in range(opening.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[opening.end() : position].strip()
    return None


def same_text(one: str, other: str) -> bool:
    """Whether two answers are written alike, but for white space and dollar signs."""
    return "".join(one.split()).strip("$") == "".join(other.split()).strip("$")
