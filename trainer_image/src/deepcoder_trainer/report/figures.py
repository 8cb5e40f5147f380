"""The few numbers that say whether a run learned, as pure functions of its steps and evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from deepcoder_contracts.steps import StepRecord

_EDGE = 5
"""Number of steps at a stage's beginning and end that are averaged, because a single step is noisy."""


@dataclass(frozen=True)
class StageFigures:
    """One stage of training."""

    name: str
    steps: int
    reward_first: float
    """Mean over its first steps."""
    reward_last: float
    truncated_first: float
    truncated_last: float
    response_tokens_first: float
    response_tokens_last: float
    seconds_per_step: float
    """Median time from one step to the next."""


@dataclass(frozen=True)
class RunFigures:
    """All training steps of a run."""

    steps: int
    reward_first_fifth: float
    reward_last_fifth: float
    stages: tuple[StageFigures, ...]

    @property
    def reward_gain(self) -> float:
        """Reward in the last fifth of all steps minus the first fifth."""
        return self.reward_last_fifth - self.reward_first_fifth


def run_figures(steps: Sequence[StepRecord]) -> RunFigures | None:
    """Return the figures of a run's steps, given in order; None without steps."""
    if not steps:
        return None
    fifth = max(1, len(steps) // 5)
    names = list(dict.fromkeys(s.stage for s in steps))
    return RunFigures(
        steps=len(steps),
        reward_first_fifth=_mean(steps[:fifth], "reward_mean"),
        reward_last_fifth=_mean(steps[-fifth:], "reward_mean"),
        stages=tuple(_stage(name, [s for s in steps if s.stage == name]) for name in names),
    )


def _stage(name: str, steps: Sequence[StepRecord]) -> StageFigures:
    edge = min(_EDGE, len(steps))
    first, last = steps[:edge], steps[-edge:]
    gaps = sorted(b.time - a.time for a, b in pairwise(steps))
    return StageFigures(
        name=name,
        steps=len(steps),
        reward_first=_mean(first, "reward_mean"),
        reward_last=_mean(last, "reward_mean"),
        truncated_first=_mean(first, "truncated_ratio"),
        truncated_last=_mean(last, "truncated_ratio"),
        response_tokens_first=_mean(first, "response_tokens_mean"),
        response_tokens_last=_mean(last, "response_tokens_mean"),
        seconds_per_step=gaps[len(gaps) // 2] if gaps else 0.0,
    )


def _mean(steps: Sequence[StepRecord], metric: str) -> float:
    values = [s.metrics[metric] for s in steps if metric in s.metrics]
    return sum(values) / len(values) if values else 0.0
