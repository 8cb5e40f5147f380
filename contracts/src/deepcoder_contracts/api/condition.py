"""Conditions, as Kubernetes' API conventions have them (`metav1.Condition`)."""

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
    """CamelCase name of the aspect."""

    status: Annotated[ConditionStatus, lenient(ConditionStatus.UNKNOWN)]
    """True, False or Unknown."""

    reason: Annotated[str, StringConstraints(max_length=128)]
    """CamelCase word for programs: why the status is what it is."""

    message: Annotated[str, StringConstraints(max_length=MAX_MESSAGE)] = ""
    """For people: what is going on, and how to mend it where it is wrong."""

    last_transition_time: datetime
    """When the status last changed."""

    observed_generation: int = Field(default=0, ge=0)
    """metadata.generation that this was computed from."""


Conditions = Annotated[
    list[Condition], Field(max_length=16, json_schema_extra={LIST_TYPE: "map", LIST_MAP_KEYS: ["type"]})
]
"""Conditions of an object, one a type."""
