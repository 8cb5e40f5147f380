"""Conditions as the Kubernetes API conventions define them (`metav1.Condition`)."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from deepcoder_contracts.api.base import LIST_MAP_KEYS, LIST_TYPE, Status, lenient

MAX_MESSAGE = 4096
"""Longest message of a condition, in characters."""


class ConditionStatus(StrEnum):
    """True, False, or Unknown while nothing has been observed."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Status):
    """One aspect of an object's state."""

    type: Annotated[str, StringConstraints(max_length=64)]
    """Type of the condition, in CamelCase."""

    status: Annotated[ConditionStatus, lenient(ConditionStatus.UNKNOWN)]
    """Status of the condition: True, False or Unknown."""

    reason: Annotated[str, StringConstraints(max_length=128)]
    """Machine-readable reason for the status, in CamelCase."""

    message: Annotated[str, StringConstraints(max_length=MAX_MESSAGE)] = ""
    """Human-readable message: what is happening and, if something is wrong, how to fix it."""

    last_transition_time: datetime
    """Time at which the status last changed."""

    observed_generation: int = Field(default=0, ge=0)
    """metadata.generation that the condition was computed from."""


Conditions = Annotated[
    list[Condition], Field(max_length=16, json_schema_extra={LIST_TYPE: "map", LIST_MAP_KEYS: ["type"]})
]
"""Conditions of an object, at most one per type."""
