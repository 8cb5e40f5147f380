"""What a pool and its slots tell of their work, for metrics: functions that do nothing unless somebody listens.

They are called on the slots' threads, between two submissions; one that raises is logged and costs no answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from deepcoder_contracts.judge import JudgeResponse
from deepcoder_sandbox.submission import Submission


class Phase(StrEnum):
    """Where a submission's wall-clock time goes."""

    QUEUE = "queue"
    """Waiting for a slot."""

    ZYGOTE = "zygote"
    """Starting a zygote, where the slot had none."""

    RUN = "run"
    """From asking for each runner to hearing of its end: confined, and running. livecodebench compares meanwhile."""

    COMPARE = "compare"
    """The rest of judging: handing texts over, reading what was left, comparing."""


class Recycled(StrEnum):
    """Why a zygote was ended."""

    RUNS = "runs"
    """It had made as many runs as it may."""

    UNCLEAN = "unclean"
    """It could not remove what a program left."""

    ZYGOTE_FAILED = "zygote_failed"
    """It died, hung, or answered what is no answer."""

    RUNNER_KILLED = "runner_killed"
    """Something killed a runner from outside, perhaps the kernel for want of memory."""

    RESOURCES = "resources"
    """The judge had no memory, descriptor or disk left."""

    DEFECT = "defect"
    """An exception that is not foreseen: a defect of the judge."""


@dataclass(frozen=True)
class Observer:
    """Who listens."""

    spent: Callable[[Phase, float], None] = lambda phase, seconds: None
    """Seconds of a phase, once a submission."""

    judged: Callable[[Submission, JudgeResponse], None] = lambda submission, answer: None
    recycled: Callable[[Recycled], None] = lambda reason: None
