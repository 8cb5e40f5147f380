"""Finds the final answer of a mathematics problem in a response: its last box (LaTeX's `boxed`).

Boxes within the reasoning do not count if the response marks where the reasoning ends. Pure; a verifier decides whether
two answers are the same number.
"""

from __future__ import annotations

import re

_BRACE = re.compile(r"\\f?boxed\s*\{|[{}]")
_THOUGHT = "</think>"


def last_boxed(response: str) -> str | None:
    r"""Return the content of the last complete `\boxed{…}`, or None. It takes linear time, even for a text of boxes."""
    text = response[response.rfind(_THOUGHT) + 1 :] if _THOUGHT in response else response
    open_braces: list[int | None] = []
    """For each open brace, the start of its box's content, or None if it does not open a box."""
    last: tuple[int, int] | None = None
    for brace in _BRACE.finditer(text):
        if brace[0] == "}":
            begin = open_braces.pop() if open_braces else None
            if begin is not None and (last is None or begin > last[0]):  # an inner box ended before and counts instead
                last = begin, brace.start()
        else:
            open_braces.append(None if brace[0] == "{" else brace.end())
    return None if last is None else text[slice(*last)].strip()


def same_text(one: str, other: str) -> bool:
    """Whether two answers are equal as text, except for white space and enclosing dollar signs."""
    return "".join(one.split()).strip("$") == "".join(other.split()).strip("$")
