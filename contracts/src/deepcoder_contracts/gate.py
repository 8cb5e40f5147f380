"""Promotion gates: when a stage may end early, and what happens if it does not.

The trainer evaluates the gate after each step, because only the trainer has every step. It writes the verdict and the
values into the manifest. The operator reads them, repeats the comparison and decides by `otherwise`. Both call the
functions here, so they cannot disagree. A metric without a value makes a condition unmet; it is never an error. A gate
on an evaluation is therefore not met before the first evaluation.
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
    """Comparison of a metric's mean over the window with the value."""

    GE = "Ge"
    GT = "Gt"
    LE = "Le"
    LT = "Lt"


class Otherwise(StrEnum):
    """What happens when the stage reaches maxSteps with its gate unmet."""

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
    """Comparison of the mean of a metric's last `window` values with a bound."""

    metric: MetricName
    """Metric to compare: step, reward_mean, truncated_ratio, plateau(reward_mean), eval/<dataset>/pass_at_1, or
    eval/<dataset>/rating for a dataset with contests."""

    op: Comparison
    """Comparison with the value. Ge: at least. Gt: greater. Le: at most. Lt: less."""

    value: float
    """Bound, in the metric's own unit. Ratios range from 0 to 1."""

    window: int = Field(default=1, ge=1, le=1000)
    """Number of most recent values to average. With fewer values, the condition is not met."""


class PromoteWhen(Contract):
    """Gate of a stage. When all conditions hold, the stage ends before maxSteps."""

    all: Annotated[list[GateCondition], Field(min_length=1, max_length=8)]
    """Conditions. All of them must hold."""

    otherwise: Otherwise = Otherwise.PROMOTE
    """What happens at maxSteps if the gate is not met. Promote: go on to the next stage. Hold: wait for approvedStages.
    Fail: fail the run."""

    @model_validator(mode="after")
    def _one_condition_a_metric(self) -> Self:
        metrics = [c.metric for c in self.all]
        if len(set(metrics)) != len(metrics):
            raise ValueError("promoteWhen.all names a metric twice: keep one condition per metric")
        return self


class GateRecord(Contract):
    """A gate's verdict, as a manifest records it."""

    met: bool
    """Whether every condition held at this step."""

    values: Figures
    """Mean over the condition's window, by metric. Conditions with too few values are left out."""

    window: dict[str, int]
    """Number of values averaged, by metric."""


def window_value(condition: GateCondition, history: Mapping[str, Sequence[float]]) -> float | None:
    """Return the mean over the condition's window, or None while there are too few values.

    `plateau(m)` is the mean of the last `window` values of m minus the mean of the `window` values before them. On a
    plateau it is near 0 or below. It needs 2 × window values.
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
    """Evaluate all conditions on the stage's metric history, whose values are in order, oldest first."""
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
    """Whether recorded values satisfy the gate. The operator applies this to a manifest's record."""
    return all(c.metric in values and _COMPARE[c.op](values[c.metric], c.value) for c in gate.all)
