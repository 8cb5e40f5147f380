"""Hooks through which a pool and its slots report their work, for metrics. By default they do nothing.

They are called on the slots' threads and must not raise. If `judged` does, that is logged and costs no answer.
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
    """Starting a zygote, if the slot had none."""

    RUN = "run"
    """From requesting each runner to learning of its end, confinement included. livecodebench compares meanwhile."""

    COMPARE = "compare"
    """The rest of judging: passing texts, reading results, comparing."""


class Recycled(StrEnum):
    """Why a zygote was ended."""

    RUNS = "runs"
    """It had reached its maximum number of runs."""

    UNCLEAN = "unclean"
    """It could not remove what a program left."""

    ZYGOTE_FAILED = "zygote_failed"
    """It died, hung, or sent an invalid answer."""

    RUNNER_KILLED = "runner_killed"
    """Something killed a runner from outside, perhaps the kernel because memory ran out."""

    RESOURCES = "resources"
    """The judge ran out of memory, descriptors or disk."""

    DEFECT = "defect"
    """An unexpected exception: a defect of the judge."""


@dataclass(frozen=True)
class Observer:
    """The functions that receive the reports."""

    spent: Callable[[Phase, float], None] = lambda phase, seconds: None
    """Receives the seconds of a phase, once per submission."""

    judged: Callable[[Submission, JudgeResponse], None] = lambda submission, answer: None
    recycled: Callable[[Recycled], None] = lambda reason: None
