"""The names that LiveCodeBench's harness star-imports before every program, in its order.

Two of the modules are heavy and rarely used, and every process pays for what its zygote has loaded. They are loaded
only for programs that could see a difference, judged by words in their source. Fails as imports do.
"""

from __future__ import annotations

import re
from typing import Any, Final

_STARRED = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json", "builtins", "typing"),
)
_WITHOUT_NAME = ("builtins", "typing")

SELDOM: Final = {
    "datetime": "date datetime time timedelta timezone tzinfo MINYEAR MAXYEAR UTC",
    "statistics": "NormalDist StatisticsError correlation covariance fmean geometric_mean harmonic_mean"
    " linear_regression mean median median_grouped median_high median_low mode multimode pstdev pvariance quantiles"
    " stdev variance",
}
"""Rarely used modules and what they export. No other module exports any of it, so it makes no difference when it is
added."""

_WORDS = (*SELDOM, *" ".join(SELDOM.values()).split(), "dir", "gc")
_PARTS = (
    *("globals", "locals", "vars", "eval", "exec", "compile", "getattr", "inspect", "modules", "importlib", "frame"),
    *("trace", "excepthook", "__dict__", "__import__", "__builtins__", "__subclasses__"),
)
_MAY_SEE = re.compile(
    rf"\b(?:{'|'.join(_WORDS)})\b|{'|'.join(_PARTS)}|[^\W\x00-\x7f]"  # a non-ASCII letter may stand for an ASCII one
)
_HINTS = " ".join(
    word for word in (*_WORDS, *_PARTS) if not any(other != word and other in word for other in _WORDS + _PARTS)
)
"""The shortest of these: a program that may see a difference has one of them. Most have none, which is quick to see.
One string, because a copy touches one page for it, and more for many."""


def put_usual(names: dict[str, Any]) -> None:
    """Add all modules' names except `SELDOM`."""
    _put([name for name in _STARRED if name not in SELDOM], names)


def put_seldom(source: str, names: dict[str, Any]) -> None:
    """Add the names of `SELDOM` if the program may see them."""
    for hint in _HINTS.split(" "):
        if hint in source:
            break
    else:
        if source.isascii():
            return
    if _MAY_SEE.search(source):
        _put(list(SELDOM), names)


def _put(modules: list[str], names: dict[str, Any]) -> None:
    for name in modules:
        exec(f"from {name} import *", names)  # noqa: S102
    for name in modules:
        if name not in _WITHOUT_NAME:
            exec(f"import {name}", names)  # noqa: S102
