"""The filters on a single problem. Each has a name, a purpose, and a function from a Record to a reason or None.

Filters that need more than the record (duplicates, contamination, official solutions, pass rates) are named here too,
so that a report lists all filters in the order in which they apply. A problem counts for the first filter that drops
it.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from deepcoder_trainer.problems.record import Record

UNREADABLE = "unreadable"
UNWANTED = "unwanted"
WINDOW = "date_window"
EMPTY = "empty_statement"
FEW_TESTS = "few_tests"
LONG_PROMPT = "long_prompt"
CONTAMINATED = "contaminated"
PASS_RATE = "pass_rate"  # noqa: S105
UNREADABLE_ANSWER = "unreadable_answer"
NO_SOLUTION = "no_solution"
FAILS = "solution_fails"
EXACT = "exact_duplicate"
NEAR = "near_duplicate"

ALL: Mapping[str, str] = {
    UNREADABLE: "a row that is not of its layout, or holds what is not read",
    UNWANTED: "a sound row of another kind: a program in another language",
    WINDOW: "published outside the dates asked for",
    EMPTY: "no statement",
    FEW_TESTS: "fewer tests than asked for: few tests can be passed by printing their outputs",
    LONG_PROMPT: "more prompt tokens than training admits",
    CONTAMINATED: "shares its statement or its tests with an evaluation problem",
    PASS_RATE: "solved too often or too seldom by the model that pass rates were given for",
    UNREADABLE_ANSWER: "the verifier cannot read its right answer as mathematics: only the same text would be right",
    NO_SOLUTION: "no official solution, in a layout that has them",
    FAILS: "no official solution passes all tests, compared strictly",
    EXACT: "the same statement as a problem that is kept",
    NEAR: "nearly the same statement as a problem that is kept",
}
"""Every filter in the order of application, with what it drops."""

Check = Callable[[Record], str | None]


@dataclass(frozen=True)
class Settings:
    """The thresholds of all filters."""

    min_tests: int = 5
    """Smallest number of tests of a problem that is judged by tests."""
    max_prompt_tokens: int = 2048
    """Longest prompt, in tokens of the model's tokenizer."""
    since: datetime.date | None = None
    """First date of the window. Problems without a date are in every window."""
    until: datetime.date | None = None
    """First date after the window."""
    near_duplicate: float = 0.8
    """Jaccard similarity of the five-word sequences of two statements from which on one of them is dropped."""
    contamination: float = 0.6
    """Share of the shorter statement's five-word sequences that the other contains, from which a problem is dropped."""
    min_pass_rate: float = 0.0
    """Problems with this pass rate or a lower one are dropped."""
    max_pass_rate: float = 1.0
    """Problems with this pass rate or a higher one are dropped."""
    max_solutions: int = 8
    """Largest number of official solutions that are tried per problem."""
    keep_unverified: bool = False
    """Whether problems without an official solution are kept even in layouts that have official solutions."""


def of_one(settings: Settings) -> tuple[tuple[str, Check], ...]:
    """Return the filters that need only the record, in order."""
    return (
        (WINDOW, lambda r: _outside(r.date, settings.since, settings.until)),
        (EMPTY, lambda r: None if r.statement.strip() else "the statement is empty"),
        (FEW_TESTS, lambda r: _few(r, settings.min_tests)),
    )


def first_reason(record: Record, checks: Iterable[tuple[str, Check]]) -> tuple[str, str] | None:
    """Return name and reason of the first filter that drops the record, or None."""
    for name, check in checks:
        if (reason := check(record)) is not None:
            return name, reason
    return None


def too_long(tokens: int, settings: Settings) -> str | None:
    """Return why a prompt with this number of tokens is dropped, or None."""
    most = settings.max_prompt_tokens
    return f"{tokens} tokens, at most {most}" if tokens > most else None


def out_of_reach(rate: float, settings: Settings) -> str | None:
    """Return why a problem with this pass rate is dropped, or None."""
    if rate <= settings.min_pass_rate:
        return f"pass rate {rate:.3g}, more than {settings.min_pass_rate:g} wanted"
    if rate >= settings.max_pass_rate:
        return f"pass rate {rate:.3g}, less than {settings.max_pass_rate:g} wanted"
    return None


def _outside(date: datetime.date | None, since: datetime.date | None, until: datetime.date | None) -> str | None:
    if date is None or ((since is None or date >= since) and (until is None or date < until)):
        return None
    return f"published {date.isoformat()}, outside {since or 'the beginning'} to {until or 'today'}"


def _few(record: Record, least: int) -> str | None:
    if record.answer is not None or len(record.tests) >= least:
        return None
    return f"{len(record.tests)} tests, at least {least}"
