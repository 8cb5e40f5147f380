"""Estimates a model's Codeforces rating by the published method (CodeElo's, as in DeepCoder's scripts). Pure.

For each contest, it computes the points that the model would have scored, its place in the real standings, and the
rating r at which the expected place among the rated participants, 1 + Σ 1 / (1 + 10^((r - r_i) / 400)), equals that
place. The rating is the mean over contests. Quirks of the published scripts are kept, so that ratings can be compared:
places are counted from 0 (the model is placed one too high), a rating is at most the best participant's plus 100, a
problem solved at the i-th sample costs 50 · i points whatever its own rules say, and contests with at most 200 rated
participants are left out.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MOST_ABOVE = 100
"""The published search goes this far above the best participant's rating."""
FEWEST_RATED = 200
"""Contests with at most this many rated participants are left out."""
POINTS_A_MISS = 50
PENALTY_A_MISS = 10

_PROBLEM = re.compile(r"(\d+)([A-Z]\d*)\Z")


@dataclass(frozen=True)
class Contest:
    """One contest with its real results."""

    problems: Mapping[str, float | None]
    """Problem (`1234A`) to its points; None in a contest that counts solved problems."""
    standings: Sequence[tuple[float, float]]
    """(points, penalty) of the rated participants, best first."""
    ratings: Sequence[int]
    """The participants' ratings before the contest, in any order."""


@dataclass(frozen=True)
class Rating:
    """The rating of a model's responses."""

    rating: float
    """Mean over contests."""
    by_contest: Mapping[str, int]
    left_out: Mapping[str, str]
    """Contest that does not count, to the reason."""
    unasked: Mapping[str, int]
    """Contest that counts, to its number of problems without a sample: they score 0, as in the published scripts."""


def contest_of(problem: str) -> str:
    """Return the contest of a problem name such as `1234A`. Raises ValueError."""
    match = _PROBLEM.match(problem)
    if match is None:
        raise ValueError(f"{problem!r} is not a Codeforces problem: write contest and index, as in 1234A")
    return match[1]


def rate(contests: Mapping[str, Contest | str], solved: Mapping[str, Sequence[bool | None]]) -> Rating | None:
    """Compute the rating from each problem's samples, in order (None: unjudged). Returns None if no contest counts.

    `contests` maps a contest that cannot be used to the reason.
    """
    by_contest: dict[str, dict[str, Sequence[bool | None]]] = {}
    for problem, tries in solved.items():
        by_contest.setdefault(contest_of(problem), {})[problem] = tries
    ratings: dict[str, int] = {}
    left_out: dict[str, str] = {}
    unasked: dict[str, int] = {}
    for name in sorted(by_contest, key=int):
        contest, answers = contests.get(name, "no standings"), by_contest[name]
        if isinstance(contest, Contest) and len(contest.standings) <= FEWEST_RATED:
            contest = f"{len(contest.standings)} rated participants, more than {FEWEST_RATED} are needed"
        if isinstance(contest, Contest) and any(all(t is None for t in each) for each in answers.values()):
            contest = "no judge could judge a problem of it"
        if isinstance(contest, str):
            left_out[name] = contest
        else:
            ratings[name] = contest_rating(contest, answers)
            if missing := len(set(contest.problems) - set(answers)):
                unasked[name] = missing
    if not ratings:
        return None
    return Rating(sum(ratings.values()) / len(ratings), ratings, left_out, unasked)


def contest_rating(contest: Contest, solved: Mapping[str, Sequence[bool | None]]) -> int:
    """Return the largest whole rating at which the expected place is not better than the model's."""
    place = place_in(contest, *points_of(contest, solved))
    others = np.asarray(contest.ratings, dtype=np.float64)
    low, high = 0, int(others.max()) + MOST_ABOVE
    while high - low > 1:
        middle = (low + high) // 2
        if expected_place(middle, others) < place:
            high = middle
        else:
            low = middle
    return low


def expected_place(rating: float, others: Sequence[float] | np.ndarray) -> float:
    """Return the expected place, from 1, of a participant with this rating among the others."""
    return 1.0 + float((1.0 / (1.0 + 10.0 ** ((rating - np.asarray(others, dtype=np.float64)) / 400.0))).sum())


def points_of(contest: Contest, solved: Mapping[str, Sequence[bool | None]]) -> tuple[float, float]:
    """Return points and penalty: samples count as successive attempts until one is right. An unjudged sample does not
    count as an attempt."""
    points = penalty = 0.0
    for problem, worth in contest.problems.items():
        tries = [t for t in solved.get(problem, ()) if t is not None]
        if True not in tries:
            continue
        misses = tries.index(True)
        if worth is None:
            points += 1
            penalty += PENALTY_A_MISS * misses
        else:
            points += max(0.0, worth - POINTS_A_MISS * misses)
    return points, penalty


def place_in(contest: Contest, points: float, penalty: float) -> int:
    """Return the number of participants who did at least as well: the place from 0, as in the published scripts."""
    for place, (theirs, their_penalty) in enumerate(contest.standings):
        if theirs < points or (theirs == points and their_penalty > penalty):
            return place
    return len(contest.standings)


def percentile(rating: float, all_ratings: Sequence[float]) -> float:
    """Return the share of all users' ratings (sorted) below `rating`, in percent."""
    return round(100.0 * bisect_left(all_ratings, rating) / len(all_ratings), 1)
