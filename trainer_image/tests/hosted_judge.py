"""A problem, and a right program for it, for tests of the hosted judge; its fixtures are in conftest.py."""

from __future__ import annotations

from deepcoder_contracts.judge import TestCase
from deepcoder_trainer.judge.submission import JudgedProblem, Submission
from deepcoder_trainer.types import Problem

DOUBLE = Problem(
    "double",
    "test",
    "double the number",
    (TestCase(input="3\n", output="6-expected\n"), TestCase(input="10\n", output="20-expected\n")),
    time_limit_s=5.0,
)
RIGHT = 'print(f\'{2*int(input())}-{"exp" + "ected"}\')'


def submission(code: str = RIGHT, problem: Problem = DOUBLE) -> Submission:
    return JudgedProblem(problem).submission(code, "g/0")
