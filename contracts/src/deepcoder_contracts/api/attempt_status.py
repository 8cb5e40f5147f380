"""The live attempt as the status remembers it: the intent that is written before its RayJob is made, and its end."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, model_validator

from deepcoder_contracts.api.base import Status, lenient
from deepcoder_contracts.api.failure import FailureReason
from deepcoder_contracts.manifest import ParentRef


class AttemptState(StrEnum):
    """What an attempt is in. Intended: written down, its RayJob may exist or not. Leaving: its RayJob is deleted."""

    INTENDED = "Intended"
    STARTING = "Starting"
    RUNNING = "Running"
    DRAINING = "Draining"
    LEAVING = "Leaving"


class DrainCause(StrEnum):
    """Why an attempt stops: the run is suspended or deleted, or its head pod is (Eviction, which nobody asked for)."""

    SUSPEND = "Suspend"
    DELETION = "Deletion"
    EVICTION = "Eviction"


class Outcome(StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    DRAINED = "Drained"
    DRAIN_TIMED_OUT = "DrainTimedOut"


class AttemptStatus(Status):
    """The live attempt. Written before its RayJob is made, removed when the RayJob is gone."""

    ordinal: int = Field(ge=1, le=999)
    """Number of the attempt; it grows with every RayJob of the run."""

    stage_index: int = Field(ge=0)
    """Position of its stage."""

    name: str
    """Name of its RayJob; its ConfigMap's begins so."""

    state: AttemptState = AttemptState.INTENDED
    """Intended: decided, its RayJob is being made. Starting: it waits for quota, pods and images. Running: its program
    reports. Draining: it saves and stops. Leaving: it is over, and its pods go."""

    uid: str | None = None
    """UID of its RayJob."""

    cluster_uid: str | None = None
    """UID of its RayCluster."""

    head_pod: str | None = None
    """Name of its Ray head's pod."""

    head_uid: str | None = None
    """UID of its Ray head's pod: the head is the attempt, another head is another attempt."""

    parent: ParentRef | None = None
    """Checkpoint of another stage or run that it starts from."""

    intended_time: datetime
    """When it was decided."""

    admitted_time: datetime | None = None
    """When its quota was granted (without a queue: when its RayJob was made)."""

    evicted_time: datetime | None = None
    """When its queue took its quota back: its RayJob goes then, and the next attempt queues anew."""

    running_time: datetime | None = None
    """When its program began."""

    step_time: datetime | None = None
    """When a step was last seen to finish."""

    heartbeat_time: datetime | None = None
    """When it last reported."""

    drain_cause: Annotated[DrainCause, lenient(DrainCause.EVICTION)] | None = None
    """Why it stops before its end."""

    drain_deadline: datetime | None = None
    """When it is waited for no longer: while it drains for its trainer, once it leaves for its RayJob and pods."""

    ended_time: datetime | None = None
    """When its end was seen."""

    left_behind_time: datetime | None = None
    """When its RayJob and pods, which had not ended in time, were given up: the run goes on without them."""

    outcome: Annotated[Outcome, lenient(Outcome.FAILED)] | None = None
    """How it ended, once that is known."""

    reason: Annotated[FailureReason, lenient(FailureReason.UNKNOWN)] | None = None
    """What it failed of."""

    evidence: str | None = None
    """What the classification rests on."""

    judges_refused: bool = False
    """Whether it was given up since none of its judges could start, which does not count against maxAttempts."""

    gpus: int = 0
    """Most GPUs that its pods have asked for at once."""

    @model_validator(mode="before")
    @classmethod
    def _known_state(cls, data: Any) -> Any:
        """A state of a newer release is read from what has happened, so that the attempt is followed from there."""
        if not isinstance(data, dict) or data.get("state", "") in ("", *AttemptState):
            return data
        state = AttemptState.INTENDED
        for field, reached in (
            ("uid", AttemptState.STARTING),
            ("runningTime", AttemptState.RUNNING),
            ("drainDeadline", AttemptState.DRAINING),
            ("endedTime", AttemptState.LEAVING),
        ):
            state = reached if data.get(field) else state
        return data | {"state": state}


class BackoffStatus(Status):
    """A pause before the next attempt."""

    until: datetime
    """When the next attempt may begin."""

    failures_in_row: int = Field(ge=0)
    """Failures since the last new checkpoint; each doubles the pause."""

    reason: Annotated[FailureReason, lenient(FailureReason.UNKNOWN)]
    """What the last attempt failed of."""
