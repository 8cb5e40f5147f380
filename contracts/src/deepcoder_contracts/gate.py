"""Promotion gates: when a stage may end early, and whether what it reached is enough.

The trainer evaluates the gate after each step, since only it has every step, and writes the verdict with the
values into the manifest. The operator reads them, recomputes the comparison and decides by `otherwise`. Both call
the functions here, so that they cannot disagree. A metric that has no value yet makes a condition unmet, never an
error: a gate on an evaluation is simply not met before the first evaluation.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from deepcoder_contracts.base import Contract, Figures


class Comparison(StrEnum):
    """How a metric's mean over the window is compared with the value."""

    GE = "Ge"
    GT = "Gt"
    LE = "Le"
    LT = "Lt"


class Otherwise(StrEnum):
    """What follows when the stage reached maxSteps with its gate unmet."""

    PROMOTE = "Promote"
    HOLD = "Hold"
    FAIL = "Fail"


_COMPARE: dict[Comparison, Callable[[float, float], bool]] = {
    Comparison.GE: operator.ge,
    Comparison.GT: operator.gt,
    Comparison.LE: operator.le,
    Comparison.LT: operator.lt,
}

MetricName = Annotated[
    str,
    StringConstraints(
        pattern=r"^(step|reward_mean|truncated_ratio|plateau\(reward_mean\)|eval/[A-Za-z0-9_.-]{1,63}/(pass_at_1|rating))$"
    ),
]


class GateCondition(Contract):
    """One comparison over the mean of the last `window` values of a metric."""

    metric: MetricName
    """step, reward_mean, truncated_ratio, plateau(reward_mean), eval/<dataset>/pass_at_1, or eval/<dataset>/rating of a
    dataset with contests."""

    op: Comparison
    """Ge: at least the value. Gt: more. Le: at most. Lt: less."""

    value: float
    """Bound, in the metric's own unit (ratios from 0 to 1)."""

    window: int = Field(default=1, ge=1, le=1000)
    """Number of last values that are averaged; fewer values than this leave the condition unmet."""


class PromoteWhen(Contract):
    """All conditions must hold; the stage then ends before maxSteps."""

    all: Annotated[list[GateCondition], Field(min_length=1, max_length=8)]
    """Conditions, all of which must hold."""

    otherwise: Otherwise = Otherwise.PROMOTE
    """At maxSteps with the gate unmet. Promote: the next stage. Hold: wait for approvedStages. Fail: the run fails."""

    @model_validator(mode="after")
    def _one_condition_a_metric(self) -> Self:
        metrics = [c.metric for c in self.all]
        if len(set(metrics)) != len(metrics):
            raise ValueError("promoteWhen.all names a metric twice: keep one condition for each metric")
        return self


class GateRecord(Contract):
    """A gate's verdict as written into a manifest."""

    met: bool
    """Whether every condition held at this step."""

    values: Figures
    """Metric to its mean over the condition's window, for conditions that had enough values."""

    window: dict[str, int]
    """Metric to the number of values averaged."""


def window_value(condition: GateCondition, history: Mapping[str, Sequence[float]]) -> float | None:
    """Mean over the condition's window, or None while there are too few values.

    `plateau(m)` is the mean of the last `window` values of m minus the mean of the `window` before them: near 0
    (or below) on a plateau. It needs 2 × window values.
    """
    metric = condition.metric
    n = condition.window
    if metric.startswith("plateau("):
        values = history.get(metric[len("plateau(") : -1], ())
        if len(values) < 2 * n:
            return None
        return sum(values[-n:]) / n - sum(values[-2 * n : -n]) / n
    values = history.get(metric, ())
    return sum(values[-n:]) / n if len(values) >= n else None


def evaluate_gate(gate: PromoteWhen, history: Mapping[str, Sequence[float]]) -> GateRecord:
    """Evaluate all conditions on the stage's metric history (oldest value first)."""
    values: dict[str, float] = {}
    for condition in gate.all:
        value = window_value(condition, history)
        if value is not None and math.isfinite(value):
            values[condition.metric] = value
    return GateRecord(
        met=recheck_gate(gate, values),
        values=values,
        window={c.metric: c.window for c in gate.all},
    )


def recheck_gate(gate: PromoteWhen, values: Mapping[str, float]) -> bool:
    """Whether recorded values satisfy the gate; what the operator does with a manifest's record."""
    return all(c.metric in values and _COMPARE[c.op](values[c.metric], c.value) for c in gate.all)
