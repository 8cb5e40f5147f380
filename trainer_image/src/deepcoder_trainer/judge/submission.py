"""The part of a submission that all submissions of a problem share, computed once.

A problem's tests may take megabytes, and thousands of programs are submitted for it, so the tests are serialised and
hashed once, not per submission. Small test sets are sent with each submission; large ones are uploaded to a judge once
and referred to by their digest. The digest of everything that is judged against is part of a submission's id. So two
problem sets with the same name, problem index and program never share an id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from deepcoder_contracts.judge import JudgeRequest, TestCase, TestSet
from deepcoder_contracts.judge_time import judging_deadline_s, submission_limit_s
from deepcoder_trainer.types import Problem

INLINE_BYTES = 16 * 1024
"""Test sets above this size in bytes are stored at the judge once and referred to by their digest."""
QUEUE_SECONDS = 300.0
"""Seconds allowed for waiting in a judge's queue, on top of the judging time."""
ANSWER_SECONDS = 60.0
"""Seconds that an answer may take beyond the deadline, which a judge counts from when it has the whole submission. A
judge that takes longer has failed."""
_ID_DIGITS = 16


@dataclass(frozen=True)
class StoredTests:
    """A test set that is uploaded to each judge once. Its bytes are made when a judge lacks it, and not kept."""

    tests: Sequence[TestCase]
    sha256: str

    @classmethod
    def of(cls, tests: Sequence[TestCase]) -> StoredTests:
        """Make one, named by the digest of its bytes."""
        return cls(tests, hashlib.sha256(_body(tests)).hexdigest())

    def body(self) -> bytes:
        """Return the bytes to upload to a judge."""
        return _body(self.tests)


@dataclass(frozen=True)
class Submission:
    """A program with its tests and limits."""

    request: JudgeRequest
    stored: StoredTests | None = None
    """The tests, if `request` refers to them by digest only."""

    @property
    def tests(self) -> Sequence[TestCase]:
        """The tests, inline or stored."""
        return self.stored.tests if self.stored is not None else self.request.tests or ()

    @property
    def longest_seconds(self) -> float:
        """Longest time in seconds that judging may take."""
        return submission_limit_s(self.request.time_limit_s, len(self.tests))

    @property
    def answer_seconds(self) -> float:
        """Longest time in seconds that a judge's answer may take, with the wait in its queue."""
        return (self.request.deadline_s or QUEUE_SECONDS) + ANSWER_SECONDS


class JudgedProblem:
    """Makes the submissions for one problem."""

    def __init__(self, problem: Problem) -> None:
        large = sum(len(t.input) + len(t.output) for t in problem.tests) > INLINE_BYTES
        self._stored = StoredTests.of(problem.tests) if large else None
        self._common = JudgeRequest(
            id="-",
            code="",
            kind=problem.kind,
            tests=None if self._stored else list(problem.tests),
            tests_sha256=self._stored.sha256 if self._stored else None,
            fn_name=problem.fn_name,
            time_limit_s=problem.time_limit_s,
            memory_limit_mb=problem.memory_limit_mb,
            deadline_s=QUEUE_SECONDS + judging_deadline_s(problem.time_limit_s, len(problem.tests)),
            stop_on_first_failure=True,
            scoring=problem.scoring,
            float_tolerance=problem.float_tolerance,
        )
        self._digest = hashlib.sha256(self._common.model_dump_json().encode()).hexdigest()[:_ID_DIGITS]

    def submission(self, code: str, key: str) -> Submission:
        """`key` names the sample within the run. The id also contains the digest of the tests and limits and the code's
        SHA-256, so that one id never has two contents."""
        sha256 = hashlib.sha256(code.encode(errors="replace")).hexdigest()
        request = self._common.model_copy(update={"id": f"{key}/{self._digest}/{sha256}", "code": code})
        return Submission(request, self._stored)


def _body(tests: Sequence[TestCase]) -> bytes:
    return TestSet(tests=list(tests)).model_dump_json().encode()
