"""Evaluations: figures from samples."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from deepcoder_trainer.evaluation.results import (
    CodeforcesRating,
    EvaluationResults,
    MeanRating,
    compare,
    dataset_result,
    metrics,
    part_order,
    scores,
)
from deepcoder_trainer.evaluation.stats import paired_difference
from deepcoder_trainer.evaluation.table import markdown, notes


def row(group: int, index: int, reward: float | None, finish: str = "stop", tokens: int = 10) -> dict[str, Any]:
    return {
        "group_id": group,
        "index": index,
        "problem_id": f"p{group}",
        "reward": reward,
        "verdict": "error" if reward is None else "passed" if reward else "wrong_answer",
        "finish": finish,
        "response_tokens": tokens,
    }


def test_figures_of_a_table_computed_by_hand() -> None:
    rows = [row(0, 0, 1), row(0, 1, 0, "length", 20), row(1, 0, 0), row(1, 1, None), row(2, 0, 1), row(2, 1, 1)]
    result = dataset_result(rows)
    assert (result.problems, result.samples, result.unjudged) == (3, 6, 1)
    assert result.pass_at_1 is not None
    assert result.pass_at_1.mean == pytest.approx((0.5 + 0 + 1) / 3)
    assert result.pass_at_1.over == 3
    # The second problem has one judged sample: pass@2 would be over two other problems than pass@1 is.
    assert {k: (v.mean, v.over) for k, v in result.pass_at_k.items()} == {"1": (pytest.approx(0.5), 3)}
    assert result.truncated_ratio == pytest.approx(1 / 6)
    assert result.response_tokens_mean == pytest.approx(70 / 6)
    assert result.verdicts == {"error": 1, "passed": 3, "wrong_answer": 2}


def test_every_k_is_over_the_problems_that_pass_at_1_is_over_and_goes_as_far_as_all_of_them_can_tell() -> None:
    rows = [row(g, i, float(i < g)) for g in range(4) for i in range(6)]
    one_less = [{**r, "reward": None} if (r["group_id"], r["index"]) == (1, 0) else r for r in rows]
    result = dataset_result(one_less)
    assert {k: v.over for k, v in result.pass_at_k.items()} == {"1": 4, "2": 4, "4": 4, "5": 4}
    assert result.pass_at_k["5"].mean == pytest.approx((0 + 0 + 1 + 1) / 4)
    none_left = [{**r, "reward": None} if r["group_id"] == 1 else r for r in rows]
    result = dataset_result(none_left)
    assert {k: v.over for k, v in result.pass_at_k.items()} == {"1": 3, "2": 3, "4": 3, "6": 3}


def test_what_unjudged_responses_cost_the_figures_stands_beside_them() -> None:
    rows = [row(g, i, None if (g == 1 and i) or g == 2 else 1.0) for g in range(3) for i in range(4)]
    results = EvaluationResults(
        key="0" * 64, inputs={"targets": [{"name": "Base"}]}, targets={"Base": {"lcb": dataset_result(rows)}}
    )
    assert notes(results) == [
        "lcb, Base: all figures are over 2 of 3 problems: of the others none was judged",
        "lcb, Base: pass@k goes to 1 of 4: of some problems no more responses could be judged",
    ]
    sound = results.model_copy(update={"targets": {"Base": {"lcb": dataset_result([row(0, 0, 1.0)])}}})
    assert notes(sound) == []


def test_nothing_judged_is_no_number() -> None:
    result = dataset_result([row(0, 0, None)])
    assert result.pass_at_1 is None
    assert result.pass_at_k == {}
    assert metrics({"Base": {"d": result}}) == {}


def test_a_hole_in_the_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="missing"):
        scores([row(0, 0, 1), row(0, 1, 1), row(1, 1, 1)])
    with pytest.raises(ValueError, match="missing"):
        scores([row(0, 0, 1), row(2, 0, 1)])


@pytest.mark.parametrize(
    ("rewards", "pass_at_1", "pass_at_2"),
    [((2.0, -0.5), 0.5, 1.0), ((0.5, 0.5), 1.0, 1.0), ((-1.0, -0.5), 0.0, 0.0), ((3.0, 2.0), 1.0, 1.0)],
)
def test_a_response_is_right_if_its_reward_is_above_0_whatever_number_a_users_reward_gives(
    rewards: tuple[float, float], pass_at_1: float, pass_at_2: float
) -> None:
    result = dataset_result([row(0, index, reward) for index, reward in enumerate(rewards)])
    assert result.pass_at_1 is not None
    assert result.pass_at_1.mean == result.pass_at_k["1"].mean == pass_at_1
    assert result.pass_at_k["2"].mean == pass_at_2


def test_comparison_pairs_problems_and_refuses_other_ones() -> None:
    before = scores([row(g, 0, 0) for g in range(8)])
    after = scores([row(g, 0, g % 2) for g in range(8)])
    comparison = compare("d", ("Base", before), ("short", after))
    assert comparison is not None
    assert comparison.difference.mean == 0.5
    assert comparison.difference.low > 0
    assert comparison.p_value == pytest.approx(2 / 2**4)
    assert comparison.difference.over == 8
    unjudged = compare("d", ("a", before), ("b", scores([row(g, 0, g % 2 if g else None) for g in range(8)])))
    assert unjudged is not None
    assert (unjudged.difference.over, unjudged.difference.mean) == (7, pytest.approx(4 / 7))
    assert compare("d", ("a", before), ("b", scores([row(g, 0, None) for g in range(8)]))) is None
    with pytest.raises(ValueError, match="different problems"):
        compare("d", ("a", before), ("b", scores([row(0, 0, 1)])))


@pytest.mark.parametrize(
    ("differences", "mean", "low", "high"),
    [
        # Of 40 problems none differs: at 97.5 % fewer than 1 - 0.025^(1/40) = 8.81 % of all do, by 1 at most.
        ([0] * 40, 0.0, -0.0881, 0.0881),
        # All of 40 got better by 1, as far as that goes: others may have got worse by 1.
        ([1] * 40, 1.0, 1 - 2 * 0.0881, 1.0),
        ([0.5] * 40, 0.5, 0.5 - 1.5 * 0.0881, 0.5 + 0.5 * 0.0881),
        ([0], 0.0, -0.975, 0.975),
    ],
)
def test_a_difference_that_all_problems_agree_on_has_the_width_of_what_so_many_cannot_miss(
    differences: list[float], mean: float, low: float, high: float
) -> None:
    before, after = np.zeros(len(differences)), np.array(differences, dtype=np.float64)
    interval = paired_difference(before, after)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((mean, low, high), abs=1e-4)
    both = scores([row(g, i, float(i == 0)) for g in range(40) for i in range(2)])
    comparison = compare("d", ("A", both), ("B", both))
    assert comparison is not None
    assert comparison.difference.low == pytest.approx(-0.0881, abs=1e-4)


def test_that_interval_covers_a_difference_that_so_many_problems_may_have_missed() -> None:
    # At the interval's end a sample that shows nothing of it comes up 2.5 times in a hundred, and no more.
    for count in (1, 5, 30, 279):
        share = paired_difference(np.zeros(count), np.zeros(count)).high
        assert (1 - share) ** count == pytest.approx(0.025)


def test_one_p_among_several_is_said_to_be_one_among_several() -> None:
    table = {name: dataset_result([row(g, 0, float(g < n)) for g in range(8)]) for n, name in enumerate("abc")}
    each = [scores([row(g, 0, float(g < n)) for g in range(8)]) for n in range(3)]
    pairs = [c for a, b in ((0, 1), (0, 2), (1, 2)) if (c := compare("d", ("abc"[a], each[a]), ("abc"[b], each[b])))]
    results = EvaluationResults(
        key="0" * 64,
        inputs={"targets": [{"name": name} for name in "abc"]},
        targets={name: {"d": found} for name, found in table.items()},
        comparisons=pairs,
    )
    assert "among 3 of them, the smallest may be small by chance alone" in markdown(results)
    assert "by chance" not in markdown(results.model_copy(update={"comparisons": pairs[:1]}))


def test_metrics_name_the_last_target_and_each_by_name() -> None:
    low, high = dataset_result([row(0, 0, 0)]), dataset_result([row(0, 0, 1)])
    figures = metrics({"Base": {"d": low}, "short": {"d": high}})
    assert figures["eval/d/pass_at_1"] == figures["eval/d/short/pass_at_1"] == 1.0
    assert figures["eval/d/Base/pass_at_1"] == 0.0


def test_problems_are_told_apart_by_difficulty_and_month() -> None:
    facts = [("easy", "2024-08-03"), ("hard", "2024-08-20"), ("easy", "2024-09-01"), (None, None)]
    rows = [
        {**row(n, i, reward), "difficulty": difficulty, "date": day}
        for n, (difficulty, day) in enumerate(facts)
        for i, reward in enumerate((1.0, None if n == 1 else float(n == 0)))
    ]
    result = dataset_result(rows)
    assert {k: (p.problems, p.unjudged) for k, p in result.by_difficulty.items()} == {"easy": (2, 0), "hard": (1, 1)}
    means = {k: p.pass_at_1.mean for k, p in result.by_difficulty.items() if p.pass_at_1}
    assert means == {"easy": 0.75, "hard": 1.0}
    assert {k: p.problems for k, p in result.by_month.items()} == {"2024-08": 2, "2024-09": 1}


def test_pass_at_k_goes_up_to_the_number_of_samples_with_intervals() -> None:
    rows = [row(g, i, float(i < g)) for g in range(5) for i in range(6)]
    result = dataset_result(rows)
    assert list(result.pass_at_k) == ["1", "2", "4", "6"]
    assert result.pass_at_k["6"].mean == 4 / 5
    assert all(e.low <= e.mean <= e.high for e in result.pass_at_k.values())
    assert result.pass_at_k["1"].low < result.pass_at_k["1"].mean


def test_lengths_that_nobody_counted_are_no_length() -> None:
    result = dataset_result([{**row(0, 0, 1), "response_tokens": None}])
    assert result.response_tokens_mean is None
    assert "eval/d/response_tokens_mean" not in metrics({"Given": {"d": result}})


def test_figures_without_a_name_are_the_last_targets_even_where_it_lacks_one() -> None:
    estimate = MeanRating(mean=1500, low=1400, high=1600)
    rated = dataset_result([row(0, 0, 1)], CodeforcesRating(rating=estimate, percentile=50.0, by_contest={"1": 1500}))
    figures = metrics({"Base": {"d": rated}, "short": {"d": dataset_result([row(0, 0, 1)])}})
    assert "eval/d/rating" not in figures
    assert metrics({"Base": {"d": rated}})["eval/d/rating"] == 1500
    assert metrics({"Base": {"d": rated}})["eval/d/percentile"] == 50


def test_results_without_a_figure_are_read_back() -> None:
    unjudged = dataset_result([{**row(0, 0, None), "response_tokens": None}])
    results = EvaluationResults(
        key="0" * 64, inputs={"targets": [{"name": "Given", "digest": "d"}]}, targets={"Given": {"d": unjudged}}
    )
    assert EvaluationResults.from_json(results.to_json()) == results


def test_results_of_the_version_before_are_read_without_its_bare_pass_at_k() -> None:
    results = EvaluationResults(
        key="0" * 64, inputs={"targets": [{"name": "Base"}]}, targets={"Base": {"d": dataset_result([row(0, 0, 1)])}}
    )
    document = json.loads(results.to_json())
    document["schemaVersion"] = 1
    document["targets"]["Base"]["d"]["passAtK"] = {"1": 1.0}
    read = EvaluationResults.from_json(json.dumps(document)).targets["Base"]["d"]
    assert (read.pass_at_k, read.pass_at_1) == ({}, results.targets["Base"]["d"].pass_at_1)


def test_parts_are_shown_from_easy_to_hard() -> None:
    assert sorted(["hard", "2024-09", "easy", "2024-08", "medium"], key=part_order) == [
        "easy",
        "medium",
        "hard",
        "2024-08",
        "2024-09",
    ]
