"""Whether a problem's settings and tests can judge any program at all.

The check has three callers: the reader of a training set, hours before the first program is judged; the judge, for each
request; and the client of a hosted API, before it sends anything. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from deepcoder_contracts.judge import Kind, Scoring, TestCase
from deepcoder_contracts.strict import parse_json


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
    if kind is Kind.FUNCTION and scoring is not Scoring.LIVECODEBENCH:  # LiveCodeBench answers tests that are not JSON
        return _no_json(tests)
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
