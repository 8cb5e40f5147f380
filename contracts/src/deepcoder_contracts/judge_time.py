"""How long judging a submission may take: the limit on all of its tests together, and the deadline that lies beyond it.

Part of the protocol: whoever asks has to wait for longer than whoever judges may take, or a slow program is an `error`
where it should be a `time_limit`. Every size that a request may have comes to its limit before its deadline.

Pure; nothing here fails.
"""

from __future__ import annotations

from typing import Final

WALL_PER_CPU: Final = 3.0
"""Wall-clock limit of a test, as a multiple of its CPU limit."""

LONGEST_DEADLINE_S: Final = 3600.0
"""Largest `deadline_s` of a request."""

LONGEST_SUBMISSION_S: Final = 1600.0
"""Most seconds that all tests of a submission may take together, however many they are: a `time_limit` past that.

Twice as long, what judging itself takes and five minutes in a queue are within `LONGEST_DEADLINE_S`."""

_STARTING_S = 5.0
_JUDGING_MARGIN_S = 30.0
_BUSY_MACHINE = 2.0
"""A program makes at most half of its time look as if others had kept it waiting."""


def harness_limit_s(time_limit_s: float, tests: int) -> float:
    """Return LiveCodeBench's limit on all tests together, as far as a deadline lies beyond it."""
    return min(LONGEST_SUBMISSION_S, (time_limit_s + 1) * tests + _STARTING_S)


def submission_limit_s(time_limit_s: float, tests: int) -> float:
    """Return the wall-clock limit of all tests together, in every scoring: time that others took from them left out.

    Without it a program that sleeps up to each test's limit would reach the client's deadline, which is no verdict.
    """
    return min(LONGEST_SUBMISSION_S, max(WALL_PER_CPU * time_limit_s, harness_limit_s(time_limit_s, tests)))


def judging_deadline_s(time_limit_s: float, tests: int) -> float:
    """Return the seconds that judging may take. Time in the queue is not part of it."""
    return _BUSY_MACHINE * submission_limit_s(time_limit_s, tests) + _JUDGING_MARGIN_S
