"""Finds the final answer of a mathematics problem in a response: its last box (LaTeX's `boxed`).

Boxes within the reasoning do not count if the response marks where the reasoning ends. Pure; a verifier decides whether
two answers are the same number.
"""

from __future__ import annotations

import re

_BRACE = re.compile(r"\\f?boxed\s*\{|[{}]")
_THOUGHT = "</think>"


def last_boxed(response: str) -> str | None:
    r"""Content of the last whole `\boxed{…}`, None without one. One pass: a model may write nothing but boxes."""
    text = response[response.rfind(_THOUGHT) + 1 :] if _THOUGHT in response else response
    open_braces: list[int | None] = []
    """Where the content of each box begins that is open; None for another brace."""
    last: tuple[int, int] | None = None
    for brace in _BRACE.finditer(text):
        if brace[0] == "}":
            begin = open_braces.pop() if open_braces else None
            if begin is not None and (last is None or begin > last[0]):  # a box within it has ended before, and counts
                last = begin, brace.start()
        else:
            open_braces.append(None if brace[0] == "{" else brace.end())
    return None if last is None else text[slice(*last)].strip()


def same_text(one: str, other: str) -> bool:
    """Whether two answers are written alike, but for white space and dollar signs."""
    return "".join(one.split()).strip("$") == "".join(other.split()).strip("$")
