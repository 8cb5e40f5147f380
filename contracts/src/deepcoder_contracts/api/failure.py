"""How attempts fail, and what the operator does about it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from deepcoder_contracts.api.base import LIST_TYPE, NAMED_MAP, VALIDATIONS, Rule, Spec, validations
from deepcoder_contracts.base import DNSLabel


class FailureReason(StrEnum):
    """Why an attempt failed, as classified from evidence."""

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
    """What to do about one kind of failure. The first matching rule applies."""

    name: DNSLabel
    """Name of the rule, shown in events."""

    on_reasons: Annotated[list[FailureReason], Field(max_length=16, json_schema_extra={LIST_TYPE: "set"})] = []
    """Failure reasons that the rule matches. An empty list matches any reason."""

    on_exit_codes: Annotated[
        list[Annotated[int, Field(ge=0, le=255)]], Field(max_length=16, json_schema_extra={LIST_TYPE: "set"})
    ] = []
    """Trainer exit codes that the rule matches. An empty list matches any code."""

    action: FailureAction
    """What to do. Retry: start another attempt and count the failure against maxAttempts. RetryIgnoreLimit: start
    another attempt without counting it. FailRun: fail the run at once."""


class Backoff(Spec):
    """Pause before the next attempt. It doubles with each consecutive failure."""

    model_config = ConfigDict(
        json_schema_extra={
            VALIDATIONS: validations(
                Rule("self.maxSeconds >= self.initialSeconds", "backoff.maxSeconds is below initialSeconds: raise it")
            )
        }
    )

    initial_seconds: int = Field(default=10, ge=0, le=3600)
    """Length of the first pause, in seconds."""

    max_seconds: int = Field(default=600, ge=0, le=86_400)
    """Length of the longest pause, in seconds."""


class FailurePolicy(Spec):
    """What the operator does when an attempt fails. Preemptions, and judges that refuse to start, do not count against
    maxAttempts."""

    max_attempts: int = Field(default=3, ge=1, le=100)
    """Number of failures of a stage after which the run fails. Preempted attempts do not count. Attempts whose judges
    refused to start do not count either, up to ten in a row."""

    backoff: Backoff = Backoff()
    """Pause between attempts."""

    rules: Annotated[list[FailureRule], Field(max_length=16, json_schema_extra=NAMED_MAP)] = []
    """Exceptions for certain failures. The first matching rule applies."""
