"""How attempts fail, and what a user wants done about it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from deepcoder_contracts.api.base import LIST_TYPE, NAMED_MAP, VALIDATIONS, Rule, Spec, validations
from deepcoder_contracts.base import DNSLabel


class FailureReason(StrEnum):
    """What an attempt failed of, as classified from evidence."""

    PREEMPTED = "Preempted"
    NODE_LOST = "NodeLost"
    HEAD_LOST = "HeadLost"
    OUT_OF_MEMORY = "OutOfMemory"
    COMMUNICATION = "Communication"
    APPLICATION = "Application"
    BAD_CONFIG = "BadConfig"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    PRE_RUNNING_DEADLINE_EXCEEDED = "PreRunningDeadlineExceeded"
    STALLED = "Stalled"
    SANDBOX_UNAVAILABLE = "SandboxUnavailable"
    MANIFEST_MISSING = "ManifestMissing"
    VALIDATION_FAILED = "ValidationFailed"
    UNKNOWN = "Unknown"


class FailureAction(StrEnum):
    """Retry counts against maxAttempts; RetryIgnoreLimit does not; FailRun gives up."""

    RETRY = "Retry"
    RETRY_IGNORE_LIMIT = "RetryIgnoreLimit"
    FAIL_RUN = "FailRun"


class FailureRule(Spec):
    """What to do about failures of a kind. The first rule that matches decides."""

    name: DNSLabel
    """Shown in events."""

    on_reasons: Annotated[list[FailureReason], Field(max_length=16, json_schema_extra={LIST_TYPE: "set"})] = []
    """Reasons it matches; none: any."""

    on_exit_codes: Annotated[
        list[Annotated[int, Field(ge=0, le=255)]], Field(max_length=16, json_schema_extra={LIST_TYPE: "set"})
    ] = []
    """Exit codes of the trainer it matches; none: any."""

    action: FailureAction
    """Retry: another attempt, which counts against maxAttempts. RetryIgnoreLimit: one that does not count. FailRun: the
    run fails at once."""


class Backoff(Spec):
    """Pause before the next attempt: doubled with each failure in a row."""

    model_config = ConfigDict(
        json_schema_extra={
            VALIDATIONS: validations(
                Rule("self.maxSeconds >= self.initialSeconds", "backoff.maxSeconds is below initialSeconds: raise it")
            )
        }
    )

    initial_seconds: int = Field(default=10, ge=0, le=3600)
    """First pause, in seconds."""

    max_seconds: int = Field(default=600, ge=0, le=86_400)
    """Longest pause, in seconds."""


class FailurePolicy(Spec):
    """How failures are met. Neither preemption nor judges that refuse to start count against maxAttempts."""

    max_attempts: int = Field(default=3, ge=1, le=100)
    """Failures of a stage after which the run fails. Attempts that were preempted do not count, nor do those whose
    judges refused to start, ten in a row at most."""

    backoff: Backoff = Backoff()
    """Pause between attempts."""

    rules: Annotated[list[FailureRule], Field(max_length=16, json_schema_extra=NAMED_MAP)] = []
    """Exceptions; the first that matches decides."""
