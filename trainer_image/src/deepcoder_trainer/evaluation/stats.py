"""Estimates and intervals of an evaluation, as pure functions of its results.

Problems are independent units, but the samples of one problem are not, so intervals are taken over problems. A formula
for independent trials (Wilson's, over all samples) would be too narrow by the square root of the number of samples per
problem. If all problems have the same result, the bootstrap has nothing to draw from, and an interval of width zero
would be wrong. Then Wilson's interval for that number of problems is used, and for differences an interval that is
exact for any distribution (`unseen`). Two models are compared on the same problems in pairs, which removes the
difficulty of the problems, by far the largest variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
"""[problems] values; nan if no sample could be judged."""

Solved = npt.NDArray[np.float64]
"""[problems, samples] 0 or 1; nan if the sample could not be judged."""


FEWEST_CONTESTS = 5
"""Smallest number of contests for which an interval is given."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def problem_means(solved: Solved) -> Values:
    """Return the mean over each problem's judged samples: [problems], nan for a problem without one."""
    judged = ~np.isnan(solved)
    counts = judged.sum(axis=1)
    sums = np.where(judged, solved, 0.0).sum(axis=1)
    return np.divide(sums, counts, out=np.full(len(solved), np.nan), where=counts > 0)


def pass_at_k(successes: int, samples: int, k: int) -> float:
    """Return the unbiased estimate of the probability that one of k samples passes: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k {k} is not between 1 and the number of samples {samples}")
    if not 0 <= successes <= samples:
        raise ValueError(f"{successes} successes of {samples} samples")
    return 1.0 - math.comb(samples - successes, k) / math.comb(samples, k)


def bootstrap(values: Sequence[float] | Values, seed: int = 0, resamples: int = 10_000) -> Interval:
    """Return the mean with its 95 % percentile bootstrap interval over values (one per problem), without nan values.

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


def interval_of(values: Sequence[float] | Values) -> Interval:
    """Return the mean of shares with its 95 % interval over problems: bootstrap, or Wilson's if all values are equal.

    Raises ValueError without a value.
    """
    data = np.asarray(values, dtype=np.float64)
    data = data[~np.isnan(data)]
    if len(data) and (data == data[0]).all():
        return wilson(float(data[0]), len(data))
    return bootstrap(data)


def wilson(share: float, trials: int) -> Interval:
    """Return a share of `trials` with Wilson's 95 % score interval (Wilson 1927)."""
    z = 1.959963984540054
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    width = 1 + z * z / trials
    # The interval contains the share itself; at 0 and 1, rounding could exclude it.
    return Interval(share, min(share, max(0.0, (centre - half) / width)), max(share, min(1.0, (centre + half) / width)))


def unseen(value: float, count: int, lowest: float, highest: float) -> Interval:
    """Return the mean of `count` draws that all gave `value`, with a 95 % interval that is exact for any distribution
    between `lowest` and `highest`: another value with a share above 1 - 0.025^(1/count) would have been drawn."""
    share = 1.0 - 0.025 ** (1.0 / count)
    return Interval(value, value - share * (value - lowest), value + share * (highest - value))


def interval_over_contests(ratings: Sequence[float]) -> Interval | None:
    """Return the bootstrap interval over contests. None if they are too few or all equal: ratings have no bounds."""
    if len(ratings) < FEWEST_CONTESTS or len(set(ratings)) == 1:
        return None
    return bootstrap(ratings)


def most_for_all(solved: Solved) -> int:
    """Return the largest k for which every problem with a judged sample has at least k of them."""
    counts = (~np.isnan(solved)).sum(axis=1)
    return int(counts[counts > 0].min(initial=solved.shape[1])) if (counts > 0).any() else 0


def pass_at_k_values(solved: Solved, k: int) -> Values:
    """Return `pass_at_k` of each problem: [problems], nan for those with fewer than k judged samples."""
    values = np.full(len(solved), np.nan)
    for number, row in enumerate(solved):
        judged = row[~np.isnan(row)]
        if len(judged) >= k:
            values[number] = pass_at_k(int(judged.sum()), len(judged), k)
    return values


def paired_p_value(before: Values, after: Values, seed: int = 0, draws: int = 100_000) -> float:
    """Return the two-sided p-value of "no difference" by a sign-flip permutation test over problems.

    Under that hypothesis each problem's difference may have either sign. The sum of the differences is compared with
    its distribution over all assignments of signs: by the binomial if all differences have the same size (with one
    sample per problem, McNemar's exact test), by enumeration for up to 16 problems that differ, else by `draws` random
    assignments. Problems that were not judged in both are left out.
    """
    if before.shape != after.shape:
        raise ValueError(f"{before.shape} and {after.shape} problems cannot be paired: evaluate the same dataset")
    differences = after - before
    differences = differences[~np.isnan(differences)]
    differences = differences[differences != 0]
    count = len(differences)
    if count == 0:
        return 1.0
    if (np.abs(differences) == abs(differences[0])).all():
        fewer = int(min((differences > 0).sum(), (differences < 0).sum()))
        return min(1.0, 2 * sum(math.comb(count, k) for k in range(fewer + 1)) / 2**count)
    seen = abs(differences.sum()) - 1e-9
    if count <= 16:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float((np.abs(signs @ differences) >= seen).mean())
    generator = np.random.Generator(np.random.Philox(seed))
    extreme = 0
    for start in range(0, draws, 1000):
        signs = 1 - 2 * generator.integers(0, 2, size=(min(1000, draws - start), count))
        extreme += int((np.abs(signs @ differences) >= seen).sum())
    return (extreme + 1) / (draws + 1)


def paired_difference(before: Values, after: Values, seed: int = 0) -> Interval:
    """Return the mean of after - before over problems, with its bootstrap interval, or `unseen` if all are equal.

    Both are [problems] in the same order; problems that were not judged in both are left out.
    """
    if before.shape != after.shape:
        raise ValueError(f"{before.shape} and {after.shape} problems cannot be paired: evaluate the same dataset")
    differences = after - before
    differences = differences[~np.isnan(differences)]
    if len(differences) and (differences == differences[0]).all():
        return unseen(float(differences[0]), len(differences), -1.0, 1.0)
    return bootstrap(differences, seed)
