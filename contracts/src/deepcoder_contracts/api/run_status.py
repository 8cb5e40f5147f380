"""DeepCoderRun.status: what the operator reports, and everything it must remember across a restart at any moment.

Counters and the live attempt's intent are stored here and never derived from child objects, which anyone may delete.
`phase` is for display only. Decisions rest on the conditions, `attempt`, `backoff` and `stages`.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from deepcoder_contracts.api.attempt_status import AttemptStatus, BackoffStatus
from deepcoder_contracts.api.base import NAMED_MAP, DecimalString, Status, lenient
from deepcoder_contracts.api.condition import Conditions, ConditionStatus
from deepcoder_contracts.base import Digest
from deepcoder_contracts.manifest import ParentRef

MAX_CHECKPOINTS = 20
MAX_POD_ENTRIES = 4096


class Phase(StrEnum):
    """Summary of where a run is, for display only."""

    PENDING = "Pending"
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    PROMOTING = "Promoting"
    HELD = "Held"
    BACKOFF = "Backoff"
    DRAINING = "Draining"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


TROUBLE = {
    "Failed": ConditionStatus.TRUE,
    "Accepted": ConditionStatus.FALSE,
    "Stalled": ConditionStatus.TRUE,
}
"""Conditions that report a problem with a run, each with the status that means trouble. The most telling come first."""


class StagePhase(StrEnum):
    """Where a stage is in its life."""

    PENDING = "Pending"
    ACTIVE = "Active"
    HELD = "Held"
    COMPLETE = "Complete"
    FAILED = "Failed"


class CheckpointStatus(Status):
    """A verified checkpoint."""

    uri: str
    """Folder of the checkpoint in the bucket."""

    digest: Digest
    """Digest of the checkpoint's MANIFEST.json."""

    stage: str
    """Stage that the checkpoint belongs to."""

    step: int = Field(ge=0)
    """Step of the stage at which the checkpoint was written."""

    ordinal: int = Field(ge=1)
    """Number of the attempt that wrote the checkpoint."""

    parent_digest: Digest | None = None
    """Digest of the preceding checkpoint's manifest."""

    final: bool = False
    """Whether the stage ended with this checkpoint."""

    committed_time: datetime
    """Time at which storage received the checkpoint's manifest."""

    gpu_seconds: DecimalString | None = None
    """GPU-seconds spent on the checkpoint, without wasted ones."""


class StageStatus(Status):
    """Observed state of one stage."""

    name: str
    """Name of the stage."""

    index: int = Field(ge=0)
    """Position of the stage in spec.stages, from 0."""

    phase: Annotated[StagePhase, lenient(StagePhase.ACTIVE)] = StagePhase.PENDING
    """Phase of the stage. Pending: not started. Active: attempts are being made. Held: waiting for its name in
    approvedStages. Complete: passed. Failed: the run failed in this stage."""

    start_time: datetime | None = None
    """Time at which the operator decided the first attempt of the stage."""

    running_time: datetime | None = None
    """Time at which the first attempt of the stage began to run."""

    active_seconds: int = 0
    """Total running time, in seconds, of the stage's ended attempts. activeDeadlineSeconds limits this time."""

    completion_time: datetime | None = None
    """Time at which the run passed the stage."""

    attempts: int = 0
    """Number of RayJobs created for the stage."""

    failures: int = 0
    """Number of failures that count against maxAttempts."""

    preemptions: int = 0
    """Number of attempts lost to preemption. They do not count against maxAttempts."""

    step: int = 0
    """Number of finished steps."""

    reward: DecimalString | None = None
    """Mean reward of the last step."""

    checkpoint: CheckpointStatus | None = None
    """Newest verified checkpoint of the stage."""

    gate_met: bool | None = None
    """Whether promoteWhen was met when the stage ended."""

    results: Annotated[dict[str, DecimalString], Field(max_length=64)] = {}
    """Values when the stage ended: evaluation results and the gate's metrics."""

    message: str | None = None
    """Human-readable description of how the stage ended."""


class CurrentStage(Status):
    """The stage that the run is at."""

    name: str
    """Name of the stage."""

    index: int = Field(ge=0)
    """Position of the stage in spec.stages, from 0."""

    context_tokens: int
    """Response limit of the stage, in tokens."""

    ordinal: int = 0
    """Number of the run's newest attempt."""


class ProgressStatus(Status):
    """The live attempt's last progress report, written at most once every 15 seconds."""

    step: int = 0
    """Number of finished steps of the stage."""

    max_steps: int = 0
    """Total number of steps of the stage."""

    display: str
    """Finished and total steps for display, such as `112/180`."""

    reward: DecimalString | None = None
    """Mean reward of the last step."""

    truncated_ratio: DecimalString | None = None
    """Share of responses that reached the response limit, from 0 to 1."""

    metrics: Annotated[dict[str, DecimalString], Field(max_length=64)] = {}
    """Metrics of the last step."""

    verdicts: Annotated[dict[str, int], Field(max_length=64)] = {}
    """Number of programs of the last step, by verdict."""

    phase: str | None = None
    """What the trainer is doing."""

    time: datetime
    """Time at which the operator received the report."""


class ProvenanceStatus(Status):
    """What the run is made from, resolved once."""

    config_digest: Digest
    """Digest of the resolved config in the ConfigMap <run>-config. The run never resumes a checkpoint with another
    digest."""

    image: str
    """Trainer image of the newest attempt."""

    image_id: str | None = None
    """The trainer image with its digest, as resolved on the node of the newest attempt's head."""

    accelerator: str | None = None
    """GPU model of the newest attempt, as its trainer reports it."""

    model: Annotated[str, Field(max_length=2049)]
    """URI of the starting model, with its revision."""

    dataset_sha256: str | None = None
    """Expected digest of the dataset file."""

    dataset_digest: Digest | None = None
    """Digest of the training problems, from the newest manifest."""

    code_digest: Digest | None = None
    """Digest of the trainer's source, from its manifests."""

    versions: Annotated[dict[str, str], Field(max_length=32)] = {}
    """Versions of Python and of the trainer's packages, from the newest manifest."""

    seed: int = 0
    """Random seed of the run."""

    from_: Annotated[ParentRef | None, Field(alias="from")] = None
    """Checkpoint of an earlier run that this run starts from, with its digest resolved."""

    storage: str
    """Folder of the run in the bucket."""

    operator_version: str
    """Version of the operator that accepted the run."""


class PodUsage(Status):
    """A pod whose GPU time is not in the totals yet, because the pod is running or its attempt is not settled."""

    name: str
    """Name of the pod."""

    ordinal: int = 0
    """Number of the attempt that the pod belongs to."""

    gpus: int
    """Number of GPUs that the pod requests."""

    scheduled_time: datetime
    """Time at which the pod was scheduled."""

    ended_time: datetime | None = None
    """Time at which the pod ended."""

    wasted_since: datetime | None = None
    """Time from which the pod's GPU time counts as wasted."""

    per_gpu_hour: DecimalString | None = None
    """Price of one GPU-hour, from the operator's price list when the pod was scheduled."""


class UsageStatus(Status):
    """What the run has used. An attempt enters the totals when it is settled."""

    gpu_seconds: DecimalString = "0"
    """GPUs times seconds, from scheduling to the end, summed over all pods."""

    wasted_gpu_seconds: DecimalString = "0"
    """The part of gpuSeconds that produced no checkpoint: time after the last checkpoint of an attempt that failed or
    was stopped, and time spent on checkpoints that storage has lost."""

    sandbox_seconds: DecimalString = "0"
    """Pods times seconds of the run's own SandboxPool, updated every minute. A shared pool is not counted."""

    sandbox_time: datetime | None = None
    """Time up to which sandboxSeconds is counted."""

    estimated_cost: DecimalString | None = None
    """Cost by the operator's price list. Absent if the operator has none."""

    estimated: bool = False
    """Whether the totals include a pod whose end was not observed and had to be estimated."""

    pods: Annotated[list[PodUsage], Field(max_length=MAX_POD_ENTRIES, json_schema_extra=NAMED_MAP)] = []
    """Running pods that have GPUs, and all pods of the live attempt that have GPUs."""


class RunStatus(Status):
    """Observed state of the run."""

    observed_generation: int = 0
    """Generation of the spec that this status reflects."""

    phase: Annotated[Phase, lenient(Phase.PENDING)] = Phase.PENDING
    """Summary for display, derived from the conditions and the attempt. Programs should read the conditions."""

    conditions: Conditions = []
    """Accepted, QuotaReserved, ClusterReady, SandboxReady, Progressing, CheckpointCurrent, Stalled, Suspended,
    Complete and Failed."""

    start_time: datetime | None = None
    """Time at which the run was accepted."""

    completion_time: datetime | None = None
    """Time at which the run completed or failed."""

    current_stage: CurrentStage | None = None
    """The stage that the run is at."""

    ordinal: int = 0
    """Number of the newest attempt. It never decreases."""

    attempt: AttemptStatus | None = None
    """The live attempt."""

    backoff: BackoffStatus | None = None
    """The pause before the next attempt."""

    stages: Annotated[list[StageStatus], Field(max_length=16, json_schema_extra=NAMED_MAP)] = []
    """State of each stage, in order."""

    progress: ProgressStatus | None = None
    """The live attempt's last progress report."""

    latest_checkpoint: CheckpointStatus | None = None
    """Newest verified checkpoint of the run."""

    checkpoints: Annotated[list[CheckpointStatus], Field(max_length=MAX_CHECKPOINTS)] = []
    """Most recent verified checkpoints, newest first."""

    provenance: ProvenanceStatus | None = None
    """What the run is made from."""

    usage: UsageStatus = UsageStatus()
    """What the run has used so far."""

    gpus: int = 0
    """Number of GPUs that the live attempt's pods request."""

    @property
    def stage_index(self) -> int:
        """Position of the current stage; 0 while there is none."""
        return self.current_stage.index if self.current_stage else 0

    @property
    def held(self) -> bool:
        """Whether the current stage waits for approval."""
        return bool(self.stages) and self.stages[self.stage_index].phase is StagePhase.HELD
