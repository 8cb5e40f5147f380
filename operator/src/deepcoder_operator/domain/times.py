"""Corrects times in a status that lie too far in the future, because they were written before a clock was set back.

Without the correction, everything that depends on such a time would wait for as long as the clock went back: a drain or
a pause would exceed its bound, and progress would not be written. Each time is reset once, to now or to the latest
value that it may have. Times from storage and from the API server are not changed; they are compared where they are
read.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TypeVar

from pydantic import BaseModel

from deepcoder_contracts.api.attempt_status import AttemptState
from deepcoder_operator.domain.bounds import LEAVE_SECONDS
from deepcoder_operator.domain.draft import Draft

M = TypeVar("M", bound=BaseModel)

_ATTEMPT = (
    "intended_time",
    "admitted_time",
    "evicted_time",
    "running_time",
    "step_time",
    "heartbeat_time",
    "ended_time",
    "left_behind_time",
)


def clamp_future_times(draft: Draft) -> None:
    """Reset times that lie too far in the future."""
    status, now = draft.status, draft.now
    if status.attempt is not None:
        leaving = status.attempt.state is AttemptState.LEAVING
        bound = draft.run.spec.checkpoint.drain_seconds + (LEAVE_SECONDS if leaving else 0)
        attempt = _clamped(_clamped(status.attempt, now, *_ATTEMPT), now + timedelta(seconds=bound), "drain_deadline")
        draft.update(attempt=attempt)
    if status.backoff is not None:
        longest = timedelta(seconds=draft.run.spec.failure_policy.backoff.max_seconds)
        draft.update(backoff=_clamped(status.backoff, now + longest, "until"))
    if status.progress is not None:
        draft.update(progress=_clamped(status.progress, now, "time"))
    if status.completion_time is not None:
        draft.update(completion_time=min(status.completion_time, now))


def _clamped(model: M, latest: datetime, *fields: str) -> M:
    ahead = {f: latest for f in fields if (time := getattr(model, f)) is not None and time > latest}
    return model.model_copy(update=ahead) if ahead else model
