"""Estimates and intervals against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deepcoder_trainer.evaluation.stats import bootstrap, mean_pass_at_k, paired_difference, pass_at_k, problem_means

NAN = math.nan


def test_pass_at_k_counts_subsets() -> None:
    # 5 samples, 2 right: of the 10 pairs, 3 hold no right one.
    assert pass_at_k(2, 5, 2) == pytest.approx(0.7)
    assert pass_at_k(2, 5, 1) == pytest.approx(0.4)
    assert pass_at_k(2, 5, 4) == 1.0
    assert pass_at_k(0, 5, 5) == 0.0


@pytest.mark.parametrize(("successes", "samples", "k"), [(1, 4, 5), (1, 4, 0), (5, 4, 1), (-1, 4, 1)])
def test_pass_at_k_refuses_impossible_counts(successes: int, samples: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"k |successes"):
        pass_at_k(successes, samples, k)


def test_unjudged_samples_are_left_out() -> None:
    rewards = np.array([[1.0, NAN], [0.0, 1.0], [NAN, NAN]])
    np.testing.assert_equal(problem_means(rewards), [1.0, 0.5, NAN])
    assert mean_pass_at_k(rewards, 1) == pytest.approx(0.75)
    assert mean_pass_at_k(rewards, 2) == 1.0  # only the second has two judged samples
    assert math.isnan(mean_pass_at_k(rewards, 3))


def test_interval_of_equal_values_is_a_point() -> None:
    interval = bootstrap([0.5] * 20)
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_interval_is_close_to_the_normal_one_and_repeats() -> None:
    values = [0.0] * 128 + [1.0] * 128
    interval = bootstrap(values)
    half = 1.96 * 0.5 / math.sqrt(256)
    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.5 - half, abs=0.006)
    assert interval.high == pytest.approx(0.5 + half, abs=0.006)
    assert bootstrap(values) == interval
    assert bootstrap([*values, NAN]).mean == 0.5


def test_pairing_removes_the_problems_own_difficulty() -> None:
    before = np.linspace(0, 0.9, 100)
    after = before + np.where(np.arange(100) % 2, 0.12, 0.08)
    difference = paired_difference(before, after)
    assert difference.mean == pytest.approx(0.1)
    assert difference.low > 0.09
    unpaired = bootstrap(after)
    assert unpaired.high - unpaired.low > 5 * (difference.high - difference.low)


def test_what_cannot_be_paired_or_estimated_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="no judged problem"):
        bootstrap([NAN])
