"""Whether programs can be judged by a problem at all: what holds of its settings and tests, whatever program comes.

In one place, since it is asked in three: where a row of a training set is read, hours before the first program is
judged by it; by the judge, of each request; and before anything goes to a hosted API. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from deepcoder_contracts.judge import Kind, Scoring, TestCase
from deepcoder_contracts.strict import parse_json


class Misfit(NamedTuple):
    """What keeps a problem from being judged."""

    field: str
    """The field at fault."""

    why: str
    """What is wrong with it, and the mend."""


def misfit(kind: Kind, scoring: Scoring, float_tolerance: float | None, tests: Sequence[TestCase]) -> Misfit | None:
    """What keeps such a problem from being judged; None if nothing does."""
    if float_tolerance is not None and scoring is not Scoring.STRICT:
        return Misfit("float_tolerance", f"scoring {scoring} has its own rule for numbers: leave it out, or use strict")
    if kind is Kind.SCRIPT and scoring is not Scoring.STRICT:
        return Misfit("scoring", f"{scoring} knows no scripts: use strict")
    if kind is Kind.FUNCTION and scoring is not Scoring.LIVECODEBENCH:  # which answers tests that are no JSON
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
