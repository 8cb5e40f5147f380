"""Conditions as the API conventions define them, and the one rule for changing them.

`lastTransitionTime` moves only when `status` flips, so that "not ready since" can be read off it; a new reason or
message alone does not move it. Times come in as values: nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from deepcoder_operator.api.base import Status


class ConditionStatus(StrEnum):
    """Whether what the type says holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Status):
    """One aspect of an object's state."""

    type: Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Za-z0-9]*$", max_length=64)]
    """CamelCase name of the aspect."""

    status: ConditionStatus
    """True, False or Unknown."""

    reason: Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Za-z0-9]*$", max_length=128)]
    """CamelCase word for the cause of the last change."""

    message: Annotated[str, Field(max_length=4096)] = ""
    """For people."""

    last_transition_time: datetime
    """When `status` changed last."""

    observed_generation: int = 0
    """Generation of the spec that this answers."""


def set_condition(conditions: Sequence[Condition], new: Condition) -> list[Condition]:
    """The conditions with `new` in its place (or at the end), its transition time kept where the status is the same."""
    out = list(conditions)
    for i, old in enumerate(out):
        if old.type == new.type:
            if old.status is new.status:
                new = new.model_copy(update={"last_transition_time": old.last_transition_time})
            out[i] = new
            return out
    return [*out, new]
