"""Whether a problem's settings and tests can judge any program at all.

The check has three callers: the reader of a training set, hours before the first program is judged; the judge, for each
request; and the client of a hosted API, before it sends anything. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from deepcoder_contracts.judge import MAX_BODY_BYTES, Kind, Scoring, TestCase, TestSet
from deepcoder_contracts.strict import parse_json

MAX_DEPTH: Final = 200
"""Deepest nesting of a function's test. Decoding and comparing use up to three stack frames per level, and the
interpreter allows a thousand."""

_JSON_OF_A_CHARACTER, _JSON_OF_A_TEST = 6, 32
"""Most bytes that JSON takes for a character, and for a test beside its characters."""

_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{\]}]', re.DOTALL)  # linear, even for an unterminated string


class Misfit(NamedTuple):
    """Why a problem cannot be judged."""

    field: str
    """The field at fault."""

    why: str
    """What is wrong with the field, and how to fix it."""


def misfit(kind: Kind, scoring: Scoring, float_tolerance: float | None, tests: Sequence[TestCase]) -> Misfit | None:
    """Return why such a problem cannot be judged, or None if it can."""
    if float_tolerance is not None and scoring is not Scoring.STRICT:
        return Misfit("float_tolerance", f"scoring {scoring} has its own rule for numbers: leave it out, or use strict")
    if kind is Kind.SCRIPT and scoring is not Scoring.STRICT:
        return Misfit("scoring", f"{scoring} knows no scripts: use strict")
    wrong = next((found for field, text in _texts(tests) if (found := no_text(field, text)) is not None), None)
    if wrong is not None or kind is not Kind.FUNCTION:
        return wrong
    if (wrong := next((found for each in _texts(tests) if (found := _too_deep(*each)) is not None), None)) is not None:
        return wrong
    # LiveCodeBench's harness has its own result for tests that are not JSON.
    return None if scoring is Scoring.LIVECODEBENCH else _no_json(tests)


def too_large(tests: Sequence[TestCase]) -> Misfit | None:
    """Return a misfit if such tests are more than a judge takes in a request, unless it is started to take more.

    The tests must be text that can be encoded (see `no_text`).
    """
    characters = sum(len(test.input) + len(test.output) for test in tests)
    if characters * _JSON_OF_A_CHARACTER + (len(tests) + 1) * _JSON_OF_A_TEST <= MAX_BODY_BYTES:  # nearly always
        return None
    size = len(TestSet.model_construct(tests=list(tests)).model_dump_json().encode())
    if size <= MAX_BODY_BYTES:
        return None
    return Misfit("tests", f"{size} bytes as JSON, more than the {MAX_BODY_BYTES} that a judge takes: leave some out")


def no_text(field: str, text: str) -> Misfit | None:
    """Return a misfit if a text contains a lone surrogate. JSON and Python strings may, but no message can be encoded
    with one."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        why = (
            f"holds a lone surrogate at character {error.start}, which cannot be encoded: replace it, or decode its "
            "source with the right encoding"
        )
        return Misfit(field, why)
    return None


def check_depth(text: str) -> None:
    """Raise ValueError if a test's JSON is nested more deeply than it can be compared."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _BRACKETS.finditer(text):
        bracket = match.group()
        if bracket in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        elif bracket in "]}":
            depth -= 1


def _texts(tests: Sequence[TestCase]) -> Iterator[tuple[str, str]]:
    for index, test in enumerate(tests):
        yield f"tests.{index}.input", test.input
        yield f"tests.{index}.output", test.output


def _too_deep(field: str, text: str) -> Misfit | None:
    try:
        check_depth(text)
    except ValueError as error:
        return Misfit(field, f"{error}: flatten it, or leave the test out")
    return None


def _no_json(tests: Sequence[TestCase]) -> Misfit | None:
    for index, test in enumerate(tests):
        try:
            for line in test.input.split("\n"):
                if line.strip():
                    parse_json(line)
        except (ValueError, RecursionError):
            return Misfit(f"tests.{index}.input", "needs one JSON value a line")
        try:
            parse_json(test.output)
        except (ValueError, RecursionError):
            return Misfit(f"tests.{index}.output", "needs to be one JSON value")
    return None
