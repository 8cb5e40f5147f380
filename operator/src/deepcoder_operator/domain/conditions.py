"""Conditions as a value: set one, and the transition time moves only when the status flips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from deepcoder_contracts.api.condition import MAX_MESSAGE, Condition, ConditionStatus


def find_condition(conditions: Iterable[Condition], type_: str) -> Condition | None:
    """The condition of this type."""
    return next((c for c in conditions if c.type == type_), None)


def is_true(conditions: Iterable[Condition], type_: str) -> bool:
    """Whether the condition of this type is there and True."""
    found = find_condition(conditions, type_)
    return found is not None and found.status is ConditionStatus.TRUE


def set_condition(
    conditions: Sequence[Condition],
    type_: str,
    status: ConditionStatus | bool,
    reason: str,
    message: str = "",
    *,
    generation: int,
    now: datetime,
    stored: Sequence[Condition] | None = None,
) -> list[Condition]:
    """The conditions with one replaced (or added, at the end).

    `stored` is what a flip is told against, where that is not what is replaced: one set twice in a pass, to another
    status and back, has not flipped.
    """
    if isinstance(status, bool):
        status = ConditionStatus.TRUE if status else ConditionStatus.FALSE
    known = find_condition(conditions, type_) is not None
    old = find_condition(conditions if stored is None else stored, type_)
    changed = old is None or old.status is not status
    new = Condition(
        type=type_,
        status=status,
        reason=reason,
        message=message[:MAX_MESSAGE],
        last_transition_time=now if old is None or changed else old.last_transition_time,
        observed_generation=generation,
    )
    return [new if c.type == type_ else c for c in conditions] if known else [*conditions, new]
