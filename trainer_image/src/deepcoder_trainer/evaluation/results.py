"""Computes figures from judged samples: pure functions over the rows of samples files.

Figures are always computed from stored samples. So a resumed evaluation, an uninterrupted one and a later recomputation
from the files give the same figures. A response is right if its reward is above 0: pass@k counts right responses,
whatever values a custom reward returns. A sample that no judge could judge counts only in `unjudged`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from deepcoder_contracts.base import Contract, Record
from deepcoder_trainer.evaluation import codeforces
from deepcoder_trainer.evaluation.stats import (
    Interval,
    Solved,
    Values,
    interval_of,
    interval_over_contests,
    most_for_all,
    paired_difference,
    paired_p_value,
    pass_at_k_values,
    problem_means,
)

Row = Mapping[str, Any]


class Estimate(Contract):
    """A mean with its 95 % interval over problems."""

    mean: float
    """Estimate."""

    low: float
    """Lower end."""

    high: float
    """Upper end."""

    over: int | None = None
    """Number of problems in the mean: those with a judged sample. None in results from before this field existed."""


class MeanRating(Contract):
    """A mean with its 95 % interval over contests."""

    mean: float
    """Estimate."""

    low: float | None = None
    """Lower end; None if there are too few contests."""

    high: float | None = None
    """Upper end; None if there are too few contests."""


class Part(Contract):
    """A part of a set's problems: those of one difficulty, or of one month."""

    problems: int = Field(ge=0)
    """Problems that were asked."""

    unjudged: int = Field(ge=0)
    """Responses that no judge could judge."""

    pass_at_1: Estimate | None = None
    """Computed as for the whole set."""


class CodeforcesRating(Contract):
    """A model's estimated rating by the published method."""

    rating: MeanRating
    """Mean over contests, with the bootstrap interval over contests."""

    percentile: float | None = None
    """Share of all users with a lower rating, in percent; None without their ratings."""

    by_contest: dict[str, int]
    """Contest to the rating from that contest."""

    left_out: dict[str, str] = {}
    """Contest that does not count, to the reason."""

    unasked: dict[str, int] = {}
    """Contest that counts, to its number of problems that were not asked. They count as unsolved: the set does not have
    them, or they were left out (a long prompt, a checker)."""


class DatasetResult(Contract):
    """One target on one problem set."""

    problems: int = Field(ge=0)
    """Problems that were asked."""

    samples: int = Field(ge=0)
    """Responses that were sampled."""

    unjudged: int = Field(ge=0)
    """Responses that no judge could judge."""

    pass_at_1: Estimate | None = None
    """Share of right responses, averaged over each problem's samples first; None if nothing was judged."""

    pass_at_k: dict[str, Estimate]
    """Unbiased pass@k for k = 1, 2, 4, … and the number of samples per problem, over the same problems as pass@1. The
    largest k is the number of judged samples that every one of these problems has."""

    truncated_ratio: float
    """Share of responses that filled the limit."""

    response_tokens_mean: float | None = None
    """Mean length of a response, in tokens; None if the given responses have no lengths."""

    verdicts: dict[str, int]
    """Verdict to its number of responses."""

    @field_validator("pass_at_k", mode="before")
    @classmethod
    def _without_bare_numbers(cls, given: Any) -> Any:
        bare = isinstance(given, dict) and any(isinstance(value, int | float) for value in given.values())
        return {} if bare else given

    by_difficulty: dict[str, Part] = {}
    """Difficulty, as the set names it, to its problems' figures."""

    by_month: dict[str, Part] = {}
    """Month of publication (YYYY-MM) to its problems' figures."""

    codeforces: CodeforcesRating | None = None
    """The rating, for sets with contests."""

    notes: list[str] = []
    """Notes that must accompany the figures."""


class Comparison(Contract):
    """Two targets on the same problems and seeds: difference of pass@1, after minus before, paired by problem."""

    dataset: str
    """Problem set."""

    before: str
    """Target."""

    after: str
    """Target."""

    difference: Estimate
    """95 % interval by bootstrap over problems."""

    p_value: float | None = None
    """Two-sided, of no difference: signs of the problems' differences permuted; with one sample McNemar's exact."""


class EvaluationResults(Record):
    """The content of results.json.

    Version 1 had no intervals of pass@k, and is read without pass@k. Since version 3, a rating over few contests has no
    interval.
    """

    CURRENT_VERSION: ClassVar[int] = 3

    key: str
    """sha256 of all inputs."""

    inputs: dict[str, Any]
    """The inputs that the key is taken over."""

    targets: dict[str, dict[str, DatasetResult]]
    """Target to problem set to figures."""

    comparisons: list[Comparison] = []
    """Comparisons of each target with each target named after it."""

    left_out: dict[str, int] = {}
    """Problem set to the number of problems whose prompt was too long."""

    @property
    def in_order(self) -> dict[str, dict[str, DatasetResult]]:
        """Return `targets` in the order in which they were named, which JSON objects do not keep."""
        return {t["name"]: self.targets[t["name"]] for t in self.inputs["targets"]}


@dataclass(frozen=True)
class Scores:
    """One target's scores on one problem set."""

    problem_ids: tuple[str, ...]
    solved: Solved
    """[problems, samples]: 1 where the reward is above 0, else 0; nan where unjudged."""


def scores(rows: Sequence[Row]) -> Scores:
    """Return the scores by problem, in the order of the rows' groups. Raises ValueError if a row is missing."""
    by_group: dict[int, dict[int, float]] = {}
    names: dict[int, str] = {}
    for row in rows:
        reward = row["reward"]
        by_group.setdefault(row["group_id"], {})[row["index"]] = math.nan if reward is None else float(reward > 0)
        names[row["group_id"]] = row["problem_id"]
    groups = sorted(by_group)
    width = max((len(s) for s in by_group.values()), default=0)
    if any(sorted(s) != list(range(width)) for s in by_group.values()) or groups != list(range(len(groups))):
        raise ValueError("samples are missing from the file")
    table = np.array([[by_group[g][i] for i in range(width)] for g in groups], dtype=np.float64)
    return Scores(tuple(names[g] for g in groups), table.reshape(len(groups), width))


def dataset_result(
    rows: Sequence[Row], rating: CodeforcesRating | None = None, notes: Sequence[str] = ()
) -> DatasetResult:
    """Compute the figures of one target on one problem set."""
    scored = scores(rows)
    verdicts: dict[str, int] = {}
    for row in rows:
        verdicts[row["verdict"]] = verdicts.get(row["verdict"], 0) + 1
    most = most_for_all(scored.solved)
    ks = sorted({2**e for e in range(most.bit_length())} | ({most} if most else set()))
    at_k = {str(k): value for k in ks if (value := _estimate(pass_at_k_values(scored.solved, k))) is not None}
    tokens = [r["response_tokens"] for r in rows if r["response_tokens"] is not None]
    return DatasetResult(
        problems=len(scored.problem_ids),
        samples=len(rows),
        unjudged=sum(r["reward"] is None for r in rows),
        pass_at_1=_estimate(problem_means(scored.solved)),
        pass_at_k=at_k,
        truncated_ratio=_mean([r["finish"] == "length" for r in rows]),
        response_tokens_mean=_mean(tokens) if tokens or not rows else None,
        verdicts=dict(sorted(verdicts.items())),
        by_difficulty=_parts(rows, scored, lambda r: r.get("difficulty")),
        by_month=_parts(rows, scored, lambda r: (r.get("date") or "")[:7]),
        codeforces=rating,
        notes=list(notes),
    )


def codeforces_rating(
    rows: Sequence[Row],
    contests: Mapping[str, codeforces.Contest | str],
    all_ratings: Sequence[float] | None,
) -> CodeforcesRating | None:
    """Compute the rating from a target's samples; None if no contest counts."""
    solved: dict[str, list[bool | None]] = {}
    for row in sorted(rows, key=lambda r: (r["group_id"], r["index"])):
        if row["contest_problem"] is not None:
            reward = row["reward"]
            solved.setdefault(row["contest_problem"], []).append(None if reward is None else reward > 0)
    rated = codeforces.rate(contests, solved)
    if rated is None:
        return None
    interval = interval_over_contests([float(r) for r in rated.by_contest.values()])
    ends = {"low": interval.low, "high": interval.high} if interval is not None else {}
    return CodeforcesRating(
        rating=MeanRating(mean=rated.rating, **ends),
        percentile=codeforces.percentile(rated.rating, all_ratings) if all_ratings else None,
        by_contest=dict(rated.by_contest),
        left_out=dict(rated.left_out),
        unasked=dict(rated.unasked),
    )


def compare(dataset: str, before: tuple[str, Scores], after: tuple[str, Scores]) -> Comparison | None:
    """Compute the paired difference of two targets; None if no problem was judged for both."""
    if before[1].problem_ids != after[1].problem_ids:
        raise ValueError(f"{before[0]} and {after[0]} were measured on different problems")
    pair = problem_means(before[1].solved), problem_means(after[1].solved)
    if np.isnan(pair[1] - pair[0]).all():
        return None
    difference = _as_estimate(paired_difference(*pair), int((~np.isnan(pair[1] - pair[0])).sum()))
    return Comparison(
        dataset=dataset, before=before[0], after=after[0], difference=difference, p_value=paired_p_value(*pair)
    )


def metrics(results: Mapping[str, Mapping[str, DatasetResult]]) -> dict[str, float]:
    """Return metrics for manifest, status and gates: `eval/<dataset>/…` of the last target, each target's pass@1."""
    figures: dict[str, float] = {}
    last = list(results)[-1:]
    for target, by_dataset in results.items():
        for dataset, result in by_dataset.items():
            if result.pass_at_1 is None:
                continue
            if len(results) > 1:
                figures[f"eval/{dataset}/{target}/pass_at_1"] = result.pass_at_1.mean
            if [target] == last:
                found = _figures(result, result.pass_at_1)
                figures |= {f"eval/{dataset}/{name}": value for name, value in found.items()}
    return figures


def part_order(name: str) -> tuple[int, str]:
    """Sort key of parts: by difficulty if their names tell it, else by name, because JSON objects have no order."""
    known = ("easy", "medium", "hard")
    return (known.index(name) if name in known else len(known), name)


def _figures(result: DatasetResult, pass_at_1: Estimate) -> dict[str, float]:
    figures = {
        "pass_at_1": pass_at_1.mean,
        "pass_at_1_low": pass_at_1.low,
        "pass_at_1_high": pass_at_1.high,
        "truncated_ratio": result.truncated_ratio,
        "unjudged": float(result.unjudged),
    }
    if result.response_tokens_mean is not None:
        figures["response_tokens_mean"] = result.response_tokens_mean
    if result.codeforces is not None:
        figures["rating"] = result.codeforces.rating.mean
        if result.codeforces.percentile is not None:
            figures["percentile"] = result.codeforces.percentile
    return figures


def _parts(rows: Sequence[Row], scored: Scores, of: Callable[[Row], str | None]) -> dict[str, Part]:
    """Group problems by the value of `of`; problems for which it is empty are in no part."""
    groups: dict[str, set[int]] = {}
    unjudged: dict[str, int] = {}
    for row in rows:
        if name := of(row):
            groups.setdefault(name, set()).add(row["group_id"])
            unjudged[name] = unjudged.get(name, 0) + (row["reward"] is None)
    means = problem_means(scored.solved)
    return {
        name: Part(problems=len(chosen), unjudged=unjudged[name], pass_at_1=_estimate(means[sorted(chosen)]))
        for name, chosen in sorted(groups.items())
    }


def _estimate(values: Values) -> Estimate | None:
    judged = int((~np.isnan(values)).sum())
    return _as_estimate(interval_of(values), judged) if judged else None


def _as_estimate(interval: Interval, over: int) -> Estimate:
    return Estimate(mean=interval.mean, low=interval.low, high=interval.high, over=over)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
