"""Codeforces ratings: the published method on examples that are computed by hand, and files as the API answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from contest_world import write_contest

from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation.codeforces import (
    Contest,
    contest_rating,
    expected_place,
    percentile,
    place_in,
    points_of,
    rate,
)
from deepcoder_trainer.evaluation.contests import read_contests
from deepcoder_trainer.evaluation.results import EvaluationResults, codeforces_rating, dataset_result
from deepcoder_trainer.evaluation.stats import interval_over_contests
from deepcoder_trainer.evaluation.table import notes


def contest(standings: list[tuple[float, float]] | None = None, **changes: Any) -> Contest:
    """One participant of 3000 and 300 of 1500; 32 of them have 1000 points and more."""
    values: dict[str, Any] = {
        "problems": {"1A": 500.0, "1B": 1000.0},
        "standings": standings or [(1500.0, 0.0)] * 32 + [(400.0, 0.0)] * 269,
        "ratings": [3000] + [1500] * 300,
    }
    return Contest(**{**values, **changes})


def test_rating_is_where_the_expected_place_is_the_place_that_was_reached() -> None:
    # 500 points: 32 did at least as well. 1 + 300 / (1 + 10^((r-1500)/400)) + 0.998 = 32 asks for
    # 10^((r-1500)/400) = 300 / 30.002 - 1 = 8.9993, so r = 1500 + 400 · 0.95421 = 1881.7: 1881 in whole numbers.
    assert contest_rating(contest(), {"1A": [True]}) == 1881
    assert expected_place(1881, [3000] + [1500] * 300) == pytest.approx(32.107, abs=1e-3)
    assert expected_place(1882, [3000] + [1500] * 300) == pytest.approx(31.951, abs=1e-3)


def test_rating_of_a_winner_ends_a_hundred_above_the_best_participant() -> None:
    # Nobody did as well, which is place 0 by the published count: no rating reaches it, the search ends at its bound.
    assert contest_rating(contest(standings=[(100.0, 0.0)] * 301), {"1A": [True]}) == 3099
    # All did better: 300 / (1 + 10^((r-1500)/400)) + 2 = 301, so r = 1500 + 400 · log10(1/299) = 509.7.
    assert contest_rating(contest(standings=[(100.0, 0.0)] * 301), {}) == 509


def test_misses_cost_fifty_points_each_and_never_more_than_the_problem_is_worth() -> None:
    tries = {"1A": [False, False, True], "1B": [False] * 8}
    assert points_of(contest(), tries) == (400.0, 0.0)
    assert points_of(contest(), {"1A": [False] * 12 + [True]}) == (0.0, 0.0)
    assert points_of(contest(), {"9Z": [True]}) == (0.0, 0.0)


def test_contest_without_points_counts_problems_and_ten_of_penalty_a_miss() -> None:
    icpc = contest(problems={"1A": None, "1B": None}, standings=[(2.0, 9.0), (2.0, 11.0), (1.0, 0.0)])
    assert points_of(icpc, {"1A": [True], "1B": [False, True]}) == (2.0, 10.0)
    assert place_in(icpc, 2.0, 10.0) == 1, "at equal points the lower penalty is before"
    assert place_in(icpc, 2.0, 11.0) == 2, "who did the same did at least as well"
    assert place_in(icpc, 0.0, 0.0) == 3


def test_sample_that_no_judge_could_judge_is_neither_right_nor_a_miss() -> None:
    assert points_of(contest(), {"1A": [None, True]}) == (500.0, 0.0)


def test_samples_are_successive_tries_by_their_index_in_whatever_order_they_are_stored() -> None:
    rows = [
        {"group_id": 0, "index": index, "contest_problem": "1A", "reward": float(right)}
        for index, right in ((1, True), (0, False))
    ]
    # One miss leaves 450 of 500 points, and 32 have 480.
    rated = codeforces_rating(rows, {"1": contest(standings=[(480.0, 0.0)] * 32 + [(400.0, 0.0)] * 269)}, None)
    assert rated is not None
    assert rated.by_contest == {"1": 1881}


def test_rating_is_the_mean_over_contests_and_says_what_was_left_out() -> None:
    easy = contest(problems={"2A": 2000.0})
    small = contest(problems={"3A": 500.0}, standings=[(0.0, 0.0)] * 200, ratings=[1500] * 200)
    solved: dict[str, list[bool | None]] = {"1A": [True], "2A": [True], "3A": [True], "4A": [True], "5A": [None]}
    solved["5B"] = [True]  # which alone would be a contest of which one problem was solved
    rated = rate({"1": contest(), "2": easy, "3": small, "4": "no standings/4.json", "5": contest()}, solved)
    assert rated is not None
    assert rated.by_contest == {"1": 1881, "2": 3099}
    assert rated.rating == (1881 + 3099) / 2
    assert rated.left_out == {
        "3": "200 rated participants, more than 200 are needed",
        "4": "no standings/4.json",
        "5": "no judge could judge a problem of it",
    }
    assert rate({}, {"1A": [True]}) is None


def test_problems_of_a_contest_that_were_not_asked_count_as_unsolved_and_are_counted_beside_the_rating() -> None:
    whole = contest(problems={"1A": 500.0, "1B": 1000.0, "1C": 1500.0})
    rated = rate({"1": whole, "2": contest(problems={"2A": 500.0})}, {"1A": [True], "2A": [False]})
    assert rated is not None
    assert rated.unasked == {"1": 2}
    assert rated.by_contest["1"] == contest_rating(whole, {"1A": [True], "1B": [False], "1C": [False]})
    rows = [
        {"group_id": n, "index": 0, "contest_problem": name, "reward": float(name == "1A")}
        for n, name in enumerate(("1A", "2A"))
    ]
    found = codeforces_rating(rows, {"1": whole, "2": contest(problems={"2A": 500.0})}, None)
    samples = {"finish": "stop", "response_tokens": 1, "verdict": "passed", "problem_id": "p"}
    result = dataset_result([{**samples, **r, "problem_id": r["contest_problem"]} for r in rows], found)
    results = EvaluationResults(key="0" * 64, inputs={"targets": [{"name": "Base"}]}, targets={"Base": {"cf": result}})
    assert EvaluationResults.from_json(results.to_json()) == results
    [note] = notes(results)
    assert "2 problems of these contests were not asked and count as unsolved" in note
    assert "over 2 contests, which give no interval" in note


@pytest.mark.parametrize(
    ("ratings", "has_one"),
    [([1881], False), ([1500, 1600, 1700, 1800], False), ([1500] * 9, False), ([1500, 1600, 1700, 1800, 1900], True)],
)
def test_a_rating_has_an_interval_only_where_contests_say_how_they_differ(ratings: list[int], has_one: bool) -> None:
    interval = interval_over_contests(ratings)
    assert (interval is not None) is has_one
    if interval is not None:
        assert interval.low < interval.mean == 1700 < interval.high


def test_percentile_is_the_share_of_users_below() -> None:
    assert percentile(1500, [1000, 1499, 1500, 2000]) == 50.0
    assert percentile(1501, [1000, 1499, 1500, 2000]) == 75.0


def test_standings_and_ratings_are_read_as_the_api_gives_them(tmp_path: Path) -> None:
    write_contest(tmp_path)
    (tmp_path / "ratings.json").write_text(json.dumps({"1500": 2, "1000": 1, "2500": 1}))
    contests = read_contests(tmp_path)
    assert contests.ratings == (1000.0, 1500.0, 1500.0, 2500.0)
    rows = [
        {"group_id": 0, "index": 0, "contest_problem": "1A", "reward": 0.0},
        {"group_id": 0, "index": 1, "contest_problem": "1A", "reward": 1.0},
        {"group_id": 1, "index": 0, "contest_problem": None, "reward": 1.0},
    ]
    rated = codeforces_rating(rows, {"1": contests.contest("1")}, contests.ratings)
    assert rated is not None
    assert (rated.rating.mean, rated.percentile, rated.by_contest) == (1881, 75.0, {"1": 1881})
    assert contests.contest("2") == "no standings/2.json"
    before = contests.digest
    write_contest(tmp_path, "2")
    assert read_contests(tmp_path).digest != before


def test_files_that_are_not_the_apis_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="has no folder standings"):
        read_contests(tmp_path)
    write_contest(tmp_path, party={"members": []})
    with pytest.raises(BadConfig, match=r"standings/1\.json .* not an answer of the Codeforces API"):
        read_contests(tmp_path).contest("1")
    (tmp_path / "standings" / "1.json").write_text("not JSON")
    with pytest.raises(BadConfig, match=r"1\.json: not JSON"):
        read_contests(tmp_path).contest("1")
    (tmp_path / "ratings.json").write_text('{"high": 3}')
    with pytest.raises(BadConfig, match=r"ratings\.json: neither a list of ratings nor counts"):
        read_contests(tmp_path)


def test_ratings_that_are_no_numbers_are_refused_because_nothing_is_above_or_below_them(tmp_path: Path) -> None:
    write_contest(tmp_path)
    for text in ("[1500, NaN, 1000]", '{"1500": 2, "nan": 1}'):
        (tmp_path / "ratings.json").write_text(text)
        with pytest.raises(BadConfig, match=r"ratings\.json: neither a list of ratings nor counts .*nan"):
            read_contests(tmp_path)


@pytest.mark.parametrize("counts", [{"1500": 10**12}, {"1500": 3, "1600": -3}], ids=["a bomb", "below 0"])
def test_counts_of_users_that_cannot_be_are_refused_before_they_are_expanded(
    counts: dict[str, int], tmp_path: Path
) -> None:
    write_contest(tmp_path)
    (tmp_path / "ratings.json").write_text(json.dumps(counts))
    with pytest.raises(BadConfig, match=r"ratings\.json: counts of [\d,]+ users: none may be below 0, and all are 10,"):
        read_contests(tmp_path)


def test_names_of_problems_are_read_in_their_order_where_there_are_some(tmp_path: Path) -> None:
    write_contest(tmp_path)
    assert read_contests(tmp_path).problems is None
    (tmp_path / "problems.json").write_text('["1B", "1A"]')
    assert read_contests(tmp_path).problems == ("1B", "1A")
    (tmp_path / "problems.json").write_text('{"1A": 1}')
    with pytest.raises(BadConfig, match=r"problems\.json: not a list of problems"):
        read_contests(tmp_path)
