"""Which difference between two statuses has to be written at once, and which may wait for the next write.

Decisions rest on conditions, the attempt, the backoff and the stages: a change there is written before anything else
is done. Figures and the wording of messages are for people: a thousand runs whose judges come up one by one would
write a thousand statuses a judge. They are written with whatever else is, or when the last write is old enough.
"""

from __future__ import annotations

from deepcoder_contracts.api.run_status import RunStatus, StageStatus
from deepcoder_operator.board import FIGURES_SECONDS


def worth_writing(old: RunStatus, new: RunStatus, seconds: float | None) -> bool:
    """Whether a status has to be written now.

    `seconds` is the time since this process last wrote the run's status, None if it has not. A pass that acts or
    posts an event writes what differs in any case, since both rest on the status that is stored.
    """
    if old == new:
        return False
    return seconds is None or seconds >= FIGURES_SECONDS or _decisive(old) != _decisive(new)


def _decisive(status: RunStatus) -> RunStatus:
    """A status without what is only for people."""
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
