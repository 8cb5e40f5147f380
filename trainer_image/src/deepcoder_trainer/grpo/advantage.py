"""Computes group-relative advantages from rewards, and decides which samples are in the loss.

For the rewards r of one prompt's samples, A = (r - mean(r)) / (std(r) + 1e-6) (GRPO: Shao et al. 2024, arXiv
2402.03300), with the unbiased standard deviation (n - 1) as in the released code. Every response token of a sample has
the sample's A. Truncated samples always count in the mean and the standard deviation. The overlong rule applies only
to truncated samples without a positive reward (a custom reward may be negative). A quarantined sample (reward None: the
judge failed, not the program) counts nowhere: not in the statistics, not in the loss, not in its denominator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deepcoder_contracts.recipe import Advantage, Overlong
from deepcoder_trainer.types import Group

EPSILON = 1e-6
"""Added to the standard deviation, as in the released code."""


@dataclass(frozen=True)
class SampleAdvantage:
    """The advantage of one sample, and whether the loss includes it."""

    advantage: float
    """A of each response token."""

    in_loss: bool
    """Whether the response tokens are in the loss and in its denominator."""


def group_advantages(group: Group, advantage: Advantage, overlong: Overlong) -> tuple[SampleAdvantage, ...]:
    """Return one entry per sample, in the group's order.

    If all rewards are equal, every A is 0, and the samples stay in the denominator. A is also 0 if fewer than two
    samples were judged.
    """
    rewards = [s.outcome.reward for s in group.samples]
    values = np.array([r for r in rewards if r is not None], np.float64)
    mean = values.mean() if len(values) else 0.0
    scale = 1.0
    if advantage is Advantage.STD:
        scale = (values.std(ddof=1) if len(values) > 1 else 0.0) + EPSILON
    result = []
    for sample, reward in zip(group.samples, rewards, strict=True):
        if reward is None:
            result.append(SampleAdvantage(0.0, in_loss=False))
        elif sample.truncated and reward <= 0 and overlong is not Overlong.OFF:
            result.append(SampleAdvantage(0.0, in_loss=overlong is Overlong.ZERO_ADVANTAGE))
        else:
            result.append(SampleAdvantage(float((reward - mean) / scale), in_loss=True))
    return tuple(result)
