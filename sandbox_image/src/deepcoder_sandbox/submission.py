"""What is judged: a request with its tests, and the one failure that every way of judging shares."""

from __future__ import annotations

from dataclasses import dataclass

from deepcoder_contracts.judge import JudgeRequest, TestCase
from deepcoder_sandbox.limits import OUTPUT_BYTES


@dataclass(frozen=True)
class Submission:
    """A request together with its tests, whether sent or stored."""

    request: JudgeRequest
    tests: tuple[TestCase, ...]
    output_bytes: int = OUTPUT_BYTES
    """Maximum bytes that its program may write to a file."""


class DeadlinePassed(Exception):
    """The client no longer waits, or the judge could not finish in time."""
