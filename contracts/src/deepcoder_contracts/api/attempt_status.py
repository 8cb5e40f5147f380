"""The live attempt in the status: the intent, which is written before the RayJob is created, and how it ended."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, model_validator

from deepcoder_contracts.api.base import Status, lenient
from deepcoder_contracts.api.failure import FailureReason
from deepcoder_contracts.manifest import ParentRef


class AttemptState(StrEnum):
    """State of an attempt. Intended: recorded; its RayJob may not exist yet. Leaving: its RayJob is being deleted."""

    INTENDED = "Intended"
    STARTING = "Starting"
    RUNNING = "Running"
    DRAINING = "Draining"
    LEAVING = "Leaving"


class DrainCause(StrEnum):
    """Why an attempt stops. Suspend, Deletion: the run is suspended or deleted. Eviction: its head pod is deleted from
    outside."""

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
    """The live attempt. The operator writes it before it creates the RayJob, and removes it when the RayJob is gone."""

    ordinal: int = Field(ge=1, le=999)
    """Number of the attempt. It increases with every RayJob of the run."""

    stage_index: int = Field(ge=0)
    """Position of the attempt's stage in spec.stages, from 0."""

    name: str
    """Name of the attempt's RayJob. The name of its ConfigMap starts with it."""

    state: AttemptState = AttemptState.INTENDED
    """State of the attempt. Intended: decided, its RayJob is being created. Starting: waiting for quota, pods and
    images. Running: its program reports. Draining: it saves and stops. Leaving: it is over, its pods are being
    removed."""

    uid: str | None = None
    """UID of the RayJob."""

    cluster_uid: str | None = None
    """UID of the RayCluster."""

    head_pod: str | None = None
    """Name of the Ray head's pod."""

    head_uid: str | None = None
    """UID of the Ray head's pod. A new head pod means a new attempt."""

    parent: ParentRef | None = None
    """Checkpoint of another stage or run that the attempt starts from."""

    pool: str | None = None
    """SandboxPool that judges for the attempt. A change of spec.sandbox takes effect in the next attempt."""

    judge_secret: str | None = None
    """Secret with the key of the hosted API that judges for the attempt, instead of a pool."""

    intended_time: datetime
    """Time at which the operator decided the attempt."""

    admitted_time: datetime | None = None
    """Time at which quota was granted. Without a queue: time at which the RayJob was created."""

    evicted_time: datetime | None = None
    """Time at which the queue withdrew the quota. The RayJob is then deleted, and the next attempt queues again."""

    running_time: datetime | None = None
    """Time at which the attempt's program started."""

    step_time: datetime | None = None
    """Time at which the operator last saw a step finish."""

    heartbeat_time: datetime | None = None
    """Time of the last progress report."""

    drain_cause: Annotated[DrainCause, lenient(DrainCause.EVICTION)] | None = None
    """Why the attempt was stopped early."""

    drain_deadline: datetime | None = None
    """Time at which the operator stops waiting: for the trainer while the attempt drains, for the RayJob and its pods
    once it leaves."""

    ended_time: datetime | None = None
    """Time at which the operator saw the attempt end."""

    left_behind_time: datetime | None = None
    """Time at which the operator gave up on a RayJob or pods that did not end. The run continues without them."""

    outcome: Annotated[Outcome, lenient(Outcome.FAILED)] | None = None
    """How the attempt ended, once known."""

    reason: Annotated[FailureReason, lenient(FailureReason.UNKNOWN)] | None = None
    """Why the attempt failed, or what its pods showed lately while it lives."""

    reason_step: int | None = None
    """Step that the attempt had reported when one of its pods last showed the reason. A reason that the attempt has
    survived by enough steps is forgotten."""

    evidence: str | None = None
    """Evidence on which the failure was classified."""

    judges_refused: bool = False
    """Whether the attempt was given up because none of its judges could start. Such an attempt does not count against
    maxAttempts."""

    gpus: int = 0
    """Largest number of GPUs that the attempt's pods requested at once."""

    @model_validator(mode="before")
    @classmethod
    def _known_state(cls, data: Any) -> Any:
        """Derive the state from the recorded times if a newer release wrote an unknown one."""
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
    """Time at which the next attempt may start."""

    failures_in_row: int = Field(ge=0)
    """Number of failures since the last new checkpoint. Each failure doubles the pause."""

    reason: Annotated[FailureReason, lenient(FailureReason.UNKNOWN)]
    """Why the last attempt failed."""
