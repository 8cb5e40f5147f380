"""Estimates and intervals against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deepcoder_trainer.evaluation.stats import (
    bootstrap,
    interval_of,
    paired_difference,
    paired_p_value,
    pass_at_k,
    pass_at_k_values,
    problem_means,
    wilson,
)

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
    np.testing.assert_equal(pass_at_k_values(rewards, 1), [1.0, 0.5, NAN])
    np.testing.assert_equal(pass_at_k_values(rewards, 2), [NAN, 1.0, NAN])  # the second alone has two judged samples
    assert np.isnan(pass_at_k_values(rewards, 3)).all()


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


def test_interval_of_problems_that_all_came_out_alike_has_a_width() -> None:
    all_solved = interval_of([1.0] * 10)
    # Wilson's for 10 of 10: the lower end is n / (n + z²) = 10 / 13.8415.
    assert (all_solved.mean, all_solved.high) == (1.0, 1.0)
    assert all_solved.low == pytest.approx(10 / 13.8415, abs=1e-4)
    none_solved = interval_of([0.0] * 10)
    assert (none_solved.mean, none_solved.low) == (0.0, 0.0)
    assert none_solved.high == pytest.approx(3.8415 / 13.8415, abs=1e-4)
    alone = interval_of([0.75])
    assert alone.low < 0.75 < alone.high, "of one problem nothing is known but that it is one"
    assert interval_of([0.0, 1.0, math.nan]) == bootstrap([0.0, 1.0])


def test_wilson_interval_of_a_known_example() -> None:
    interval = wilson(0.8, 10)
    assert (interval.low, interval.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))


def test_p_value_with_one_sample_a_problem_is_mcnemars_exact_test() -> None:
    before = np.array([0.0] * 9 + [1.0] + [1.0] * 5 + [0.0] * 5)
    after = np.array([1.0] * 9 + [0.0] + [1.0] * 5 + [0.0] * 5)
    # 9 changed one way and 1 the other: 2 · (C(10,0) + C(10,1)) / 2^10.
    assert paired_p_value(before, after) == pytest.approx(22 / 1024)
    assert paired_p_value(after, before) == pytest.approx(22 / 1024)
    assert paired_p_value(before, before) == 1.0
    halves = np.array([0.0] * 3 + [1.0] * 17)  # of two samples each: also exact, where too many signs are to be counted
    assert paired_p_value(np.full(20, 0.5), halves) == pytest.approx(2 * (1 + 20 + 190 + 1140) / 2**20, rel=1e-9)


def test_p_value_of_shares_counts_all_signs_and_draws_them_where_there_are_too_many() -> None:
    before = np.zeros(3)
    # Of the 8 sums of ±0.25 ± 0.5 ± 1, those of +1.75 and -1.75 are as far from 0.
    assert paired_p_value(before, np.array([0.25, 0.5, 1.0])) == pytest.approx(2 / 8)
    assert paired_p_value(before, np.array([0.25, 0.5, math.nan])) == pytest.approx(2 / 4)
    many = np.linspace(0.1, 1.0, 40)
    assert paired_p_value(np.zeros(40), many) == pytest.approx(1 / 100_001), "only all of one sign reach it"
    mixed = many * np.where(np.arange(40) % 2, 1, -1)
    assert paired_p_value(np.zeros(40), mixed) > 0.5
    with pytest.raises(ValueError, match="evaluate the same dataset"):
        paired_p_value(np.zeros(2), np.zeros(3))
