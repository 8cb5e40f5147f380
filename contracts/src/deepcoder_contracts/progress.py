"""Progress reports of a running attempt, and the operator's replies.

Reports may be lost at any time without harm: training never waits for them, and the durable truth is in storage. The
reply carries the request to drain, so the operator needs no connection into the run's pods to stop an attempt.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from deepcoder_contracts.base import Contract, Digest, DNSLabel, Figures, Record

AUDIENCE = "deepcoder-operator"
"""Audience of the token that identifies the reporting pod. The operator does not accept tokens for the API server, and
the API server does not accept this token."""

MAX_BODY_BYTES = 64 * 1024
"""Largest accepted report."""


Count = Annotated[int, Field(ge=0, le=2**53)]
"""A count that every JSON reader represents exactly. A status field holds at most 2^63."""


class TrainerPhase(StrEnum):
    """What the attempt is doing."""

    STARTING = "Starting"
    CURATING = "Curating"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    CHECKPOINTING = "Checkpointing"
    DRAINING = "Draining"


class CheckpointSummary(Contract):
    """The newest committed checkpoint."""

    uri: str
    """Folder of the checkpoint."""

    digest: Digest
    """Digest of the checkpoint's MANIFEST.json."""

    step: int = Field(ge=0)
    """Step of the checkpoint."""


class ExpectedSubmissions(Contract):
    """Programs that will reach the judges soon. They let the pool grow before the burst."""

    count: Count
    """Number of programs."""

    within_seconds: float = Field(gt=0, le=10**9)
    """Time, in seconds, within which the programs are expected. It is the duration of the last step, which may contain
    an evaluation of many hours. So the bound is far above that: a refused report would make the attempt seem silent."""


class ProgressReport(Record):
    """One heartbeat."""

    ordinal: int = Field(ge=1)
    """Number of the reporting attempt."""

    stage: DNSLabel
    """Stage of the attempt."""

    phase: TrainerPhase
    """What the attempt is doing."""

    step: Count
    """Number of finished steps of the stage."""

    max_steps: Count
    """Total number of steps of the stage."""

    metrics: Figures = {}
    """Metrics of the last step (reward_mean, truncated_ratio, response_tokens_mean, …)."""

    verdicts: dict[str, Count] = {}
    """Number of programs of the last step, by verdict."""

    phase_seconds: Figures = {}
    """Seconds spent since the previous report, by phase: wait_batch, turn, train, wait_sampled, sync, evaluate,
    checkpoint."""

    latest_checkpoint: CheckpointSummary | None = None
    """Newest committed checkpoint."""

    expected_submissions: ExpectedSubmissions | None = None
    """Load that the judges should expect."""

    accelerator: Annotated[str, Field(max_length=256)] | None = None
    """GPU models that the attempt runs on, once known."""

    sent_at: datetime
    """Time at which the report was sent, by the sender's clock (UTC). It shows whether a later report overtook
    this one."""


class Desired(StrEnum):
    """What the attempt should do."""

    RUN = "Run"
    DRAIN = "Drain"


class ProgressReply(Record):
    """The operator's reply to a heartbeat, in the version of the report, because the operator is upgraded first.

    Readers ignore fields that they do not know: a request that they can follow must not be lost because of one that
    they cannot.
    """

    desired: Desired = Desired.RUN
    """What the attempt should do. Run: continue. Drain: stop admitting work, save, exit with 75."""

    deadline_seconds: float | None = Field(default=None, ge=0)
    """Drain: time left, in seconds."""

    image_id: str | None = None
    """Image of the attempt's head with its digest, for the manifests. A pod cannot learn its own."""
