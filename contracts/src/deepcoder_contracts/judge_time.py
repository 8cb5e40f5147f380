"""How long judging a submission may take: the limit on all of its tests together, and the deadline beyond it.

This is part of the protocol. A client must wait longer than a judge may take; otherwise a slow program becomes an
`error` instead of a `time_limit`. A request of any allowed size reaches its limit before its deadline.

Pure; nothing here fails.
"""

from __future__ import annotations

from typing import Final

WALL_PER_CPU: Final = 3.0
"""Wall-clock limit of a test, as a multiple of its CPU limit."""

LONGEST_DEADLINE_S: Final = 3600.0
"""Largest `deadline_s` of a request."""

LONGEST_SUBMISSION_S: Final = 1600.0
"""Longest time, in seconds, that all tests of a submission may take together. Beyond it the verdict is `time_limit`.

Twice this time, the overhead of judging and five minutes in a queue fit within `LONGEST_DEADLINE_S`."""

_STARTING_S = 5.0
_JUDGING_MARGIN_S = 30.0
_BUSY_MACHINE = 2.0
"""A program can make at most half of its time look like waiting for other processes."""


def harness_limit_s(time_limit_s: float, tests: int) -> float:
    """Return LiveCodeBench's limit on all tests together, capped so that a deadline can lie beyond it."""
    return min(LONGEST_SUBMISSION_S, (time_limit_s + 1) * tests + _STARTING_S)


def submission_limit_s(time_limit_s: float, tests: int) -> float:
    """Return the wall-clock limit of all tests together, for every scoring. Time taken by other processes is excluded.

    Without this limit a program that sleeps up to each test's limit would reach the client's deadline and get no
    verdict.
    """
    return min(LONGEST_SUBMISSION_S, max(WALL_PER_CPU * time_limit_s, harness_limit_s(time_limit_s, tests)))


def judging_deadline_s(time_limit_s: float, tests: int) -> float:
    """Return the time, in seconds, that judging may take. Time in the queue does not count."""
    return _BUSY_MACHINE * submission_limit_s(time_limit_s, tests) + _JUDGING_MARGIN_S
