"""DeepCoderRun.status: what the operator reports, and all it must remember to be killed at any moment.

Counters and the live attempt's intent are here and never derived from children: those may be deleted by anyone.
`phase` is for display; decisions rest on conditions, `attempt`, `backoff` and `stages`.
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
    """Where a run is, for display."""

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
"""Conditions that say what is wrong with a run, each with the status in which it does; what says most comes first."""


class StagePhase(StrEnum):
    """Where a stage is."""

    PENDING = "Pending"
    ACTIVE = "Active"
    HELD = "Held"
    COMPLETE = "Complete"
    FAILED = "Failed"


class CheckpointStatus(Status):
    """A verified checkpoint."""

    uri: str
    """Its folder."""

    digest: Digest
    """Digest of its MANIFEST.json."""

    stage: str
    """Its stage."""

    step: int = Field(ge=0)
    """Steps of its stage."""

    ordinal: int = Field(ge=1)
    """The attempt that wrote it."""

    parent_digest: Digest | None = None
    """Digest of the checkpoint before it."""

    final: bool = False
    """Whether its stage ended here."""

    committed_time: datetime
    """When storage received its manifest."""

    gpu_seconds: DecimalString | None = None
    """GPU-seconds that went into it, without those that were wasted."""


class StageStatus(Status):
    """One stage."""

    name: str
    """Its name."""

    index: int = Field(ge=0)
    """Its position."""

    phase: Annotated[StagePhase, lenient(StagePhase.ACTIVE)] = StagePhase.PENDING
    """Pending: its turn has not come. Active: attempts are made. Held: it waits for its name in approvedStages.
    Complete: passed. Failed: the run failed in it."""

    start_time: datetime | None = None
    """When its first attempt was decided."""

    running_time: datetime | None = None
    """When its first attempt began to run."""

    active_seconds: int = 0
    """Time that attempts which have ended ran, in seconds: what activeDeadlineSeconds bounds."""

    completion_time: datetime | None = None
    """When it was passed."""

    attempts: int = 0
    """RayJobs made for it."""

    failures: int = 0
    """Failures that count against maxAttempts."""

    preemptions: int = 0
    """Attempts lost to preemption; they do not count."""

    step: int = 0
    """Steps finished."""

    reward: DecimalString | None = None
    """Mean reward of the last step."""

    checkpoint: CheckpointStatus | None = None
    """Newest verified checkpoint."""

    gate_met: bool | None = None
    """Whether promoteWhen was met at the end."""

    results: Annotated[dict[str, DecimalString], Field(max_length=64)] = {}
    """Values at the end: evaluation results and the gate's metrics."""

    message: str | None = None
    """For people: how it ended."""


class CurrentStage(Status):
    """The stage the run is at."""

    name: str
    """Its name."""

    index: int = Field(ge=0)
    """Its position."""

    context_tokens: int
    """Its response limit."""

    ordinal: int = 0
    """The newest attempt of the run."""


class ProgressStatus(Status):
    """What the live attempt last reported, at most one write each 15 s."""

    step: int = 0
    """Finished steps of the stage."""

    max_steps: int = 0
    """Steps of the stage."""

    display: str
    """`112/180`."""

    reward: DecimalString | None = None
    """Mean reward of the last step."""

    truncated_ratio: DecimalString | None = None
    """Share of responses that filled the context."""

    metrics: Annotated[dict[str, DecimalString], Field(max_length=64)] = {}
    """Metrics of the last step."""

    verdicts: Annotated[dict[str, int], Field(max_length=64)] = {}
    """Programs of the last step by verdict."""

    phase: str | None = None
    """What the trainer is doing."""

    time: datetime
    """When it was received."""


class ProvenanceStatus(Status):
    """What the run is made from, resolved once."""

    config_digest: Digest
    """Of the resolved config, in the ConfigMap <run>-config. A checkpoint with another is never resumed."""

    image: str
    """Trainer image of the newest attempt."""

    image_id: str | None = None
    """That image with its digest, as the node of the newest attempt's head resolved it."""

    accelerator: str | None = None
    """Model of the GPUs that the newest attempt runs on, in its own words."""

    model: Annotated[str, Field(max_length=2049)]
    """URI (with revision) of the starting model."""

    dataset_sha256: str | None = None
    """Digest the dataset is held to."""

    dataset_digest: Digest | None = None
    """Of the problems that were trained on, from the newest manifest."""

    code_digest: Digest | None = None
    """Of the trainer's source, from its manifests."""

    versions: Annotated[dict[str, str], Field(max_length=32)] = {}
    """Of Python and of the packages that the newest manifest's trainer stands on."""

    seed: int = 0
    """The run's seed."""

    from_: Annotated[ParentRef | None, Field(alias="from")] = None
    """Checkpoint of an earlier run that this one starts from, with its digest resolved."""

    storage: str
    """Folder of the run in the bucket."""

    operator_version: str
    """Operator that accepted the run."""


class PodUsage(Status):
    """A pod whose GPU time is not in the totals yet: it runs, or its attempt is not settled."""

    name: str
    """Its name."""

    ordinal: int = 0
    """The attempt it belongs to."""

    gpus: int
    """GPUs it asks for."""

    scheduled_time: datetime
    """When it was scheduled."""

    ended_time: datetime | None = None
    """When it ended."""

    wasted_since: datetime | None = None
    """From when its time was for nothing."""

    per_gpu_hour: DecimalString | None = None
    """What its GPUs cost, by the operator's price list when it was scheduled."""


class UsageStatus(Status):
    """What the run has cost: attempts join the totals when they are settled."""

    gpu_seconds: DecimalString = "0"
    """GPUs times seconds from scheduled to gone, over all pods."""

    wasted_gpu_seconds: DecimalString = "0"
    """Of these, those after an attempt's last checkpoint where it failed or was stopped without another, and those
    that went into checkpoints that storage has lost."""

    sandbox_seconds: DecimalString = "0"
    """Pods times seconds of the run's own SandboxPool, by the minute; a shared pool's are not counted."""

    sandbox_time: datetime | None = None
    """Until when sandboxSeconds is counted."""

    estimated_cost: DecimalString | None = None
    """By the operator's price list; absent without one."""

    estimated: bool = False
    """Whether an end of a pod was not seen, and was taken from what was last known."""

    pods: Annotated[list[PodUsage], Field(max_length=MAX_POD_ENTRIES, json_schema_extra=NAMED_MAP)] = []
    """Pods with GPUs that run, and all of the live attempt."""


class RunStatus(Status):
    """Where the run is."""

    observed_generation: int = 0
    """Generation of the spec that this status answers."""

    phase: Annotated[Phase, lenient(Phase.PENDING)] = Phase.PENDING
    """For display; derived from the conditions and the attempt."""

    conditions: Conditions = []
    """Accepted, QuotaReserved, ClusterReady, SandboxReady, Progressing, CheckpointCurrent, Stalled, Suspended,
    Complete and Failed."""

    start_time: datetime | None = None
    """When the run was accepted."""

    completion_time: datetime | None = None
    """When it completed or failed."""

    current_stage: CurrentStage | None = None
    """The stage the run is at."""

    ordinal: int = 0
    """Number of the newest attempt; never falls."""

    attempt: AttemptStatus | None = None
    """The live attempt."""

    backoff: BackoffStatus | None = None
    """The pause before the next attempt."""

    stages: Annotated[list[StageStatus], Field(max_length=16, json_schema_extra=NAMED_MAP)] = []
    """One entry a stage, in order."""

    progress: ProgressStatus | None = None
    """What the live attempt last reported."""

    latest_checkpoint: CheckpointStatus | None = None
    """Newest verified checkpoint of the run."""

    checkpoints: Annotated[list[CheckpointStatus], Field(max_length=MAX_CHECKPOINTS)] = []
    """Newest verified checkpoints, newest first."""

    provenance: ProvenanceStatus | None = None
    """What the run is made from."""

    usage: UsageStatus = UsageStatus()
    """What it has cost."""

    gpus: int = 0
    """GPUs that the live attempt's pods ask for."""

    @property
    def stage_index(self) -> int:
        """Position of the current stage, which is the first as long as there is none."""
        return self.current_stage.index if self.current_stage else 0

    @property
    def held(self) -> bool:
        """Whether the current stage waits for somebody's word."""
        return bool(self.stages) and self.stages[self.stage_index].phase is StagePhase.HELD
