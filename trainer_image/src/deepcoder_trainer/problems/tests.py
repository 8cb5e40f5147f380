"""Which tests grade a problem, and how long each may take: one rule for each source.

The published recipe grades TACO, SYNTHETIC-1 and Codeforces problems by the 15 tests with the longest inputs at 12
seconds each, and LiveCodeBench problems by all tests at 6 seconds under its own comparison (agentica-project/rllm at
874daa4, rllm/rewards/code_reward.py). There, a functional problem with more than 15 tests loses its function name and
is run as a stdin program. Here the name is a field of the problem and cannot be lost. Problems of any other source are
graded as written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepcoder_contracts.judge import Scoring, TestCase


@dataclass(frozen=True)
class TestPolicy:
    """The rule by which problems of one source are graded."""

    __test__ = False  # this is not a test class for pytest

    most_tests: int | None
    """Largest number of tests, of which those with the longest inputs are kept; None: all, in their order."""
    time_limit_s: float
    """Seconds per test, unless the problem has its own limit."""
    scoring: Scoring
    """Comparison of outputs, unless the problem names its own."""


_LONGEST_15 = TestPolicy(most_tests=15, time_limit_s=12.0, scoring=Scoring.STRICT)
_ALL_LCB = TestPolicy(most_tests=None, time_limit_s=6.0, scoring=Scoring.LIVECODEBENCH)
_AS_WRITTEN = TestPolicy(most_tests=None, time_limit_s=12.0, scoring=Scoring.STRICT)

_POLICIES: dict[str, TestPolicy] = {
    "taco": _LONGEST_15,
    "primeintellect": _LONGEST_15,
    "synthetic-1": _LONGEST_15,
    "codeforces": _LONGEST_15,
    "livecodebench": _ALL_LCB,
    "lcbv5": _ALL_LCB,
}


def policy_for(source: str) -> TestPolicy:
    """Return the rule of a source, by its name in the released data or its own name. Others are graded as written."""
    return _POLICIES.get(source.strip().lower().replace("_", "-"), _AS_WRITTEN)


def select_tests(source: str, tests: Sequence[TestCase]) -> tuple[TestCase, ...]:
    """Return the tests that grade a problem of this source.

    If there are more than the source's limit, those with the longest inputs are kept, longest first (equal lengths in
    their order), so that a wrong program tends to fail early.
    """
    most = policy_for(source).most_tests
    if most is None or len(tests) <= most:
        return tuple(tests)
    return tuple(sorted(tests, key=lambda t: len(t.input), reverse=True)[:most])
