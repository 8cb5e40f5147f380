"""Estimates and intervals of an evaluation, as pure functions of its results.

Problems are the independent units, samples of one problem are not: intervals are taken over problems. Comparing two
models on the same problems pairs them, which takes out the problems' own difficulty, by far the largest variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
"""[problems] of numbers; nan where nothing could be judged."""

Solved = npt.NDArray[np.float64]
"""[problems, samples] of 0 or 1; nan where a sample could not be judged."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def problem_means(solved: Solved) -> Values:
    """[problems] mean over each problem's judged samples; nan for a problem with none."""
    judged = ~np.isnan(solved)
    counts = judged.sum(axis=1)
    sums = np.where(judged, solved, 0.0).sum(axis=1)
    return np.divide(sums, counts, out=np.full(len(solved), np.nan), where=counts > 0)


def pass_at_k(successes: int, samples: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples passes: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k {k} is not between 1 and the number of samples {samples}")
    if not 0 <= successes <= samples:
        raise ValueError(f"{successes} successes of {samples} samples")
    return 1.0 - math.comb(samples - successes, k) / math.comb(samples, k)


def mean_pass_at_k(solved: Solved, k: int) -> float:
    """Mean of `pass_at_k` over the problems that have at least k judged samples; nan if none has."""
    estimates = []
    for row in solved:
        judged = row[~np.isnan(row)]
        if len(judged) >= k:
            estimates.append(pass_at_k(int(judged.sum()), len(judged), k))
    return float(np.mean(estimates)) if estimates else math.nan


def bootstrap(values: Sequence[float] | Values, seed: int = 0, resamples: int = 10_000) -> Interval:
    """Mean with the 95 % percentile bootstrap over values (one a problem); nan values are left out.

    Raises ValueError without a value.
    """
    data = np.asarray(values, dtype=np.float64)
    data = data[~np.isnan(data)]
    if not len(data):
        raise ValueError("no judged problem to estimate from")
    generator = np.random.Generator(np.random.Philox(seed))
    # In slices: a table of all indices at once would take gigabytes for large problem sets.
    means = np.empty(resamples)
    for start in range(0, resamples, 500):
        chosen = generator.integers(0, len(data), size=(min(500, resamples - start), len(data)))
        means[start : start + len(chosen)] = data[chosen].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(data.mean()), float(low), float(high))


def paired_difference(before: Values, after: Values, seed: int = 0) -> Interval:
    """Mean difference after - before over problems, with its bootstrap interval.

    Both are [problems] in the same order; problems that one of them could not judge are left out.
    """
    if before.shape != after.shape:
        raise ValueError(f"{before.shape} and {after.shape} problems cannot be paired: evaluate the same dataset")
    return bootstrap(after - before, seed)
