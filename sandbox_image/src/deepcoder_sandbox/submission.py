"""What is judged: a request with its tests at hand, and the one failure that every way of judging shares."""

from __future__ import annotations

from dataclasses import dataclass

from deepcoder_contracts.judge import JudgeRequest, TestCase
from deepcoder_sandbox.limits import OUTPUT_BYTES


@dataclass(frozen=True)
class Submission:
    """A request whose tests are at hand."""

    request: JudgeRequest
    tests: tuple[TestCase, ...]
    output_bytes: int = OUTPUT_BYTES
    """Most that its program may write to a file."""


class DeadlinePassed(Exception):
    """The client no longer waits, or the judge could not finish in time."""
