"""Evaluations: figures from samples."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deepcoder_trainer.evaluation.results import (
    CodeforcesRating,
    Estimate,
    EvaluationResults,
    compare,
    dataset_result,
    metrics,
    part_order,
    scores,
)


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
    assert result.pass_at_k["1"].mean == pytest.approx(0.5)
    assert result.pass_at_k["2"].mean == 1.0  # the second problem has one judged sample and cannot tell
    assert result.truncated_ratio == pytest.approx(1 / 6)
    assert result.response_tokens_mean == pytest.approx(70 / 6)
    assert result.verdicts == {"error": 1, "passed": 3, "wrong_answer": 2}


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
    assert compare("d", ("a", before), ("b", scores([row(g, 0, None) for g in range(8)]))) is None
    with pytest.raises(ValueError, match="different problems"):
        compare("d", ("a", before), ("b", scores([row(0, 0, 1)])))


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
    estimate = Estimate(mean=1500, low=1400, high=1600)
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
