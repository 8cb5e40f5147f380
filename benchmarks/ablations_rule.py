"""What is left out or put in, what the paper says of it, and the rule by which that is seen or not. Pure.

The rule, fixed before anything was measured: a figure of a run is the mean of a metric over the last fifth of its
steps (pass@1: the evaluation after the last). Arm and base are compared seed by seed, since a seed's two runs share
problems and starting model; with the 95 % interval of Student's t of those differences, a claim is *seen* when the
interval lies wholly on the side that the claim names, its *opposite* is seen when it lies wholly on the other, and else
it is *not seen*, which says nothing of differences smaller than the interval is wide. One seed has no spread, and
decides nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BASE = "base"
HELD_BACK = "eval/heldout/pass_at_1"
MOST_SEEDS = 10
# Two-sided 95 % quantiles of Student's t for 1 to 9 degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Arm:
    """One change of the recipe, and nothing else."""

    name: str
    title: str
    settings: Mapping[str, float | str]
    """Recipe fields and their values."""


ARMS = (
    Arm(BASE, "GRPO+", {}),
    Arm("entropy", "entropy bonus", {"entropyCoefficient": 0.01}),
    Arm("kl", "KL penalty", {"klCoefficient": 0.04}),
    Arm("overlong-off", "no overlong filter", {"overlong": "Off"}),
    Arm("clip-high-0.2", "clipHigh 0.2", {"clipHigh": 0.2}),
)
"""The bonus as in PPO, the penalty as in the first GRPO (DeepSeekMath)."""


@dataclass(frozen=True)
class Expectation:
    """What a claim says of the arm against the base."""

    metric: str
    name: str
    sign: int
    """1: the arm has more of it; -1: less."""


@dataclass(frozen=True)
class Claim:
    """Something that DeepCoder's authors say of GRPO+."""

    arm: str
    text: str
    expectations: tuple[Expectation, ...]
    beside: tuple[tuple[str, str], ...] = ()
    """Metrics, and what they are called, that say how much the switch had to do at all."""
    beyond: str = ""
    """What of it a run of `{steps}` steps cannot show, whatever comes out."""


_REWARD = Expectation("reward_mean", "reward", -1)
CLAIMS = (
    Claim(
        "entropy",
        "An entropy bonus makes entropy grow until training collapses; without it training is stable.",
        (Expectation("entropy", "entropy", 1), _REWARD),
        beyond="A collapse comes late, if it comes: runs of {steps} steps cannot show that there is none.",
    ),
    Claim(
        "kl",
        "Without a KL penalty the policy may leave the starting model's neighbourhood, and gets further.",
        (_REWARD, Expectation(HELD_BACK, "pass@1 on held-back problems", -1)),
        (("reference_kl", "KL from the starting model, a token"),),
    ),
    Claim(
        "overlong-off",
        "Responses that were cut off are not punished, so that the model goes on to think at length, and is better "
        "still where it is given more room.",
        (
            Expectation("response_tokens_mean", "response tokens", -1),
            Expectation(HELD_BACK, "pass@1 with four times the room", -1),
        ),
        (("truncated_ratio", "truncated"),),
    ),
    Claim(
        "clip-high-0.2",
        "A higher upper clip lets unlikely tokens gain, which keeps entropy up and helps exploration.",
        (Expectation("entropy", "entropy", -1), _REWARD),
        (("clipped_high_ratio", "tokens that the upper clip stopped"),),
    ),
)


@dataclass(frozen=True)
class Run:
    """A run that was trained to its end."""

    arm: str
    seed: int
    steps: Sequence[Mapping[str, float]]
    """Metrics of each step, in order."""
    seconds: float


@dataclass(frozen=True)
class Difference:
    """Arm minus base, over the seeds that both were run with."""

    base: float
    arm: float
    by_seed: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.by_seed.values())

    @property
    def half_width(self) -> float:
        """Of the 95 % interval; infinite with one seed."""
        n = len(self.by_seed)
        return _T[n - 2] * statistics.stdev(self.by_seed.values()) / math.sqrt(n) if n > 1 else math.inf

    def verdict(self, sign: int) -> str:
        """`seen`, `opposite seen` or `not seen`, of a claim that the difference has this sign."""
        if abs(self.mean) <= self.half_width:
            return "not seen"
        return "seen" if self.mean * sign > 0 else "opposite seen"


def figure(run: Run, metric: str) -> float | None:
    """The mean over the last fifth of the steps that have the metric; None when none has."""
    last = run.steps[-max(1, len(run.steps) // 5) :]
    values = [step[metric] for step in last if metric in step]
    return statistics.fmean(values) if values else None


def difference(runs: Sequence[Run], arm: str, metric: str) -> Difference | None:
    """Arm against base, None when no seed has both."""
    found = {(r.arm, r.seed): value for r in runs if (value := figure(r, metric)) is not None}
    seeds = sorted(seed for name, seed in found if name == arm and (BASE, seed) in found)
    if not seeds:
        return None
    return Difference(
        base=statistics.fmean(found[BASE, seed] for seed in seeds),
        arm=statistics.fmean(found[arm, seed] for seed in seeds),
        by_seed={seed: found[arm, seed] - found[BASE, seed] for seed in seeds},
    )


def overall(verdicts: Sequence[str]) -> str:
    """One word for a claim from those of its parts."""
    if not verdicts:
        return "not run"
    if all(v == "seen" for v in verdicts):
        return "seen"
    if "seen" in verdicts:
        return "seen in part"
    return "opposite seen" if "opposite seen" in verdicts else "not seen"


def judged(runs: Sequence[Run], claim: Claim) -> tuple[str, list[tuple[Expectation, Difference, str]]]:
    """A claim's verdict, and those of its parts."""
    parts = [
        (each, found, found.verdict(each.sign))
        for each in claim.expectations
        if (found := difference(runs, claim.arm, each.metric)) is not None
    ]
    return overall([verdict for _, _, verdict in parts]), parts
