"""What a running attempt tells the operator, and what it is told in reply.

Progress may be lost at any time without harm: training never waits for it and the durable truth is in storage.
The reply carries the wish to drain, so that stopping needs no connection from the operator into the run's pods.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from deepcoder_contracts.base import Contract, Digest, DNSLabel, Figures, Record

AUDIENCE = "deepcoder-operator"
"""Audience of the token that shows which pod reports: one for the API server is of no use here, nor the reverse."""

MAX_BODY_BYTES = 64 * 1024
"""Largest accepted report."""


Count = Annotated[int, Field(ge=0, le=2**53)]
"""A number of things, as far as every reader of JSON tells it from the next; a status takes no more than 2^63."""


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
    """Its folder."""

    digest: Digest
    """Digest of its MANIFEST.json."""

    step: int = Field(ge=0)
    """Its step."""


class ExpectedSubmissions(Contract):
    """Programs that will reach the judges soon, so that the pool can grow ahead of the burst."""

    count: int = Field(ge=0)
    """Number of programs."""

    within_seconds: float = Field(gt=0)
    """Time in which they are expected."""


class ProgressReport(Record):
    """One heartbeat."""

    ordinal: int = Field(ge=1)
    """The attempt that speaks."""

    stage: DNSLabel
    """Its stage."""

    phase: TrainerPhase
    """What it is doing."""

    step: Count
    """Finished steps of the stage."""

    max_steps: Count
    """Steps the stage will take."""

    metrics: Figures = {}
    """Metrics of the last step (reward_mean, truncated_ratio, response_tokens_mean, …)."""

    verdicts: dict[str, Count] = {}
    """Programs of the last step by verdict."""

    phase_seconds: Figures = {}
    """Seconds since the report before, by phase: wait_batch, turn, train, wait_sampled, sync, evaluate, checkpoint."""

    latest_checkpoint: CheckpointSummary | None = None
    """Newest committed checkpoint."""

    expected_submissions: ExpectedSubmissions | None = None
    """Load to come for the judges."""

    accelerator: Annotated[str, Field(max_length=256)] | None = None
    """Model of the GPUs that the attempt runs on, once it is known."""

    sent_at: datetime
    """Sender's clock (UTC), by which a report that another has overtaken is told."""


class Desired(StrEnum):
    """What the attempt should do."""

    RUN = "Run"
    DRAIN = "Drain"


class ProgressReply(Record):
    """The operator's answer to a heartbeat, in the report's own version: the operator is the first to be upgraded.

    What a reader does not know it passes over: a wish that it can obey must not be lost for one that it cannot.
    """

    desired: Desired = Desired.RUN
    """Run, or Drain: stop admitting, save, exit 75."""

    deadline_seconds: float | None = Field(default=None, ge=0)
    """Drain: time left."""

    image_id: str | None = None
    """Image of the attempt's head with its digest, for manifests: nobody tells a pod its own."""
