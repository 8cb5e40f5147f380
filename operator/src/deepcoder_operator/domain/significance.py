"""Which changes of a status must be written at once, and which may wait for the next write.

Decisions rest on conditions, the attempt, the backoff and the stages. A change there is written before anything else
happens. Figures and message texts are for people, and may wait for another change or until the last write is old
enough. Otherwise a thousand runs that share a pool would write a thousand statuses for each judge that starts. A step
takes minutes. Between two steps reports change nothing but the time of the last one, which waits longest.
"""

from __future__ import annotations

from deepcoder_contracts.api.run_status import RunStatus, StageStatus
from deepcoder_operator.progress_board import FIGURES_SECONDS

TIMES_SECONDS = 60.0
"""Shortest time between two status writes that only copy the time of the last report. `kubectl deepcoder status` warns
of a silent trainer when that time is two minutes old."""


def worth_writing(old: RunStatus, new: RunStatus, seconds: float | None, *, asked: bool = False) -> bool:
    """Whether a status must be written now.

    `seconds` is the time since this process last wrote the run's status, None if it never did. A pass that acts or
    posts an event writes every change anyway, because both rest on the stored status.
    """
    return old != new and (seconds is None or seconds >= held_seconds(old, new, asked=asked))


def held_seconds(old: RunStatus, new: RunStatus, *, asked: bool = False) -> float:
    """Return the time since the last write from which a change is written.

    `asked` says that the pass has queried storage. The stored time of the last report then bounds how often a report of
    a checkpoint that cannot be verified causes a query (`query`).
    """
    if _decisive(old) != _decisive(new) or (asked and old.progress != new.progress):
        return 0.0
    return TIMES_SECONDS if _timeless(old) == _timeless(new) else FIGURES_SECONDS


def _timeless(status: RunStatus) -> RunStatus:
    """Return a status without the time of the last report."""
    attempt, progress = status.attempt, status.progress
    return status.model_copy(
        update={
            "attempt": attempt and attempt.model_copy(update={"heartbeat_time": None}),
            "progress": progress and progress.model_copy(update={"time": None}),
        }
    )


def _decisive(status: RunStatus) -> RunStatus:
    """Return a status without the parts that are only for people."""
    attempt, usage = status.attempt, status.usage
    return status.model_copy(
        update={
            "conditions": [c.model_copy(update={"message": ""}) for c in status.conditions],
            "progress": None,
            "gpus": 0,
            "attempt": attempt and attempt.model_copy(update={"heartbeat_time": None, "step_time": None}),
            "stages": [_decisive_stage(s) for s in status.stages],
            "usage": usage.model_copy(update={"sandbox_seconds": "0", "sandbox_time": None}),
        }
    )


def _decisive_stage(stage: StageStatus) -> StageStatus:
    return stage.model_copy(update={"step": 0, "reward": None, "message": None})
