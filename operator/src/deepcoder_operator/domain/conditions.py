"""Conditions as values. The transition time changes only when the status changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from deepcoder_contracts.api.condition import MAX_MESSAGE, Condition, ConditionStatus


def find_condition(conditions: Iterable[Condition], type_: str) -> Condition | None:
    """Return the condition of this type, or None."""
    for condition in conditions:  # not `next()` of a generator: some thirty times a pass
        if condition.type == type_:
            return condition
    return None


def is_true(conditions: Iterable[Condition], type_: str) -> bool:
    """Whether the condition of this type exists and is True."""
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
    """Return the conditions with one replaced, or added at the end.

    `stored` is what a change of status is measured against, if that is not `conditions`: a condition that is set twice
    in a pass, to another status and back, has not changed.
    """
    if isinstance(status, bool):
        status = ConditionStatus.TRUE if status else ConditionStatus.FALSE
    known = find_condition(conditions, type_)
    old = known if stored is None else find_condition(stored, type_)
    since = now if old is None or old.status is not status else old.last_transition_time
    fields = {
        "type": type_, "status": status, "reason": reason, "message": message[:MAX_MESSAGE],
        "last_transition_time": since, "observed_generation": generation,
    }  # fmt: skip
    if known is not None and vars(known) == fields:
        return list(conditions)
    new = Condition.model_validate(fields)
    return [new if c.type == type_ else c for c in conditions] if known else [*conditions, new]
