"""Rewards of a group to advantages, and which samples take part in the loss.

For rewards r of one prompt's samples, A = (r - mean(r)) / (std(r) + 1e-6), with the unbiased standard deviation
(n - 1) as in the released code; every response token of a sample carries its A. Truncated samples count in mean and
standard deviation under every overlong rule; the rule is for those that earned nothing, which a reward of the user's
own may say by a number below 0. A quarantined sample (reward None: the judge failed, not the program)
counts nowhere: not in the statistics, not in the loss, not in its denominator.
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
    """What the loss needs to know about one sample."""

    advantage: float
    """A of each of its tokens."""

    in_loss: bool
    """Whether its tokens are in the loss and in the denominator."""


def group_advantages(group: Group, advantage: Advantage, overlong: Overlong) -> tuple[SampleAdvantage, ...]:
    """One entry a sample, in the group's order.

    A group of equal rewards has A = 0 throughout and stays in the denominator. With fewer than two judged samples
    there is nothing to compare, and A is 0.
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
