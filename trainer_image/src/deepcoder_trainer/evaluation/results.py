"""From judged samples to figures: pure functions over the rows of samples files.

Figures are always computed from what was stored, so that a resumed evaluation, one that ran through and one that is
recomputed later from its files come to the same. A response is right if its reward is above 0: pass@k counts right
ones, whatever numbers a reward of the user's own gives. A sample that no judge could judge is in no figure but
`unjudged`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from deepcoder_contracts.base import Contract, VersionedContract
from deepcoder_trainer.evaluation.stats import (
    Solved,
    bootstrap,
    mean_pass_at_k,
    paired_difference,
    problem_means,
)

Row = Mapping[str, Any]


class Estimate(Contract):
    """A mean with its 95 % bootstrap interval over problems."""

    mean: float
    """Estimate."""

    low: float
    """Lower end."""

    high: float
    """Upper end."""


class DatasetResult(Contract):
    """One target on one problem set."""

    problems: int = Field(ge=0)
    """Problems that were asked."""

    samples: int = Field(ge=0)
    """Responses that were sampled."""

    unjudged: int = Field(ge=0)
    """Responses that no judge could judge."""

    pass_at_1: Estimate | None
    """Share of right responses, averaged over each problem's samples first; None if nothing was judged."""

    pass_at_k: dict[str, float]
    """Unbiased pass@k for k of 1, 2, 4, … up to the samples of a problem."""

    truncated_ratio: float
    """Share of responses that filled the limit."""

    response_tokens_mean: float
    """Mean length of a response, in tokens."""

    verdicts: dict[str, int]
    """Responses by the verdict that decided."""


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


class EvaluationResults(VersionedContract):
    """results.json."""

    key: str
    """sha256 of all inputs."""

    inputs: dict[str, Any]
    """The inputs that the key is taken over."""

    targets: dict[str, dict[str, DatasetResult]]
    """Target to problem set to figures."""

    comparisons: list[Comparison] = []
    """Each target with each that was named after it."""

    left_out: dict[str, int] = {}
    """Problem set to the number of problems whose prompt was too long."""

    @property
    def in_order(self) -> dict[str, dict[str, DatasetResult]]:
        """`targets` in the order in which they were named; JSON objects have none."""
        return {t["name"]: self.targets[t["name"]] for t in self.inputs["targets"]}


@dataclass(frozen=True)
class Scores:
    """What one target got on one problem set."""

    problem_ids: tuple[str, ...]
    solved: Solved
    """[problems, samples]: 1 where the reward is above 0, else 0; nan where unjudged."""


def scores(rows: Sequence[Row]) -> Scores:
    """What was solved by problem, in the order of the rows' groups. Raises ValueError for a hole in the table."""
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


def dataset_result(rows: Sequence[Row]) -> DatasetResult:
    """Figures of one target on one problem set."""
    scored = scores(rows)
    means = problem_means(scored.solved)
    judged = not np.isnan(means).all() if len(means) else False
    verdicts: dict[str, int] = {}
    for row in rows:
        verdicts[row["verdict"]] = verdicts.get(row["verdict"], 0) + 1
    samples = scored.solved.shape[1]
    powers = [2**e for e in range(samples.bit_length()) if 2**e <= samples]
    at_k = {str(k): value for k in powers if not math.isnan(value := mean_pass_at_k(scored.solved, k))}
    interval = bootstrap(means) if judged else None
    return DatasetResult(
        problems=len(scored.problem_ids),
        samples=len(rows),
        unjudged=sum(r["reward"] is None for r in rows),
        pass_at_1=Estimate(mean=interval.mean, low=interval.low, high=interval.high) if interval else None,
        pass_at_k=at_k,
        truncated_ratio=_mean([r["finish"] == "length" for r in rows]),
        response_tokens_mean=_mean([r["response_tokens"] for r in rows]),
        verdicts=dict(sorted(verdicts.items())),
    )


def compare(dataset: str, before: tuple[str, Scores], after: tuple[str, Scores]) -> Comparison | None:
    """The paired difference of two targets; None if no problem was judged for both."""
    if before[1].problem_ids != after[1].problem_ids:
        raise ValueError(f"{before[0]} and {after[0]} were measured on different problems")
    pair = problem_means(before[1].solved), problem_means(after[1].solved)
    if np.isnan(pair[1] - pair[0]).all():
        return None
    interval = paired_difference(*pair)
    estimate = Estimate(mean=interval.mean, low=interval.low, high=interval.high)
    return Comparison(dataset=dataset, before=before[0], after=after[0], difference=estimate)


def metrics(results: Mapping[str, Mapping[str, DatasetResult]]) -> dict[str, float]:
    """For manifest, status and gates: `eval/<dataset>/…` of the last target, and pass@1 of each by name."""
    figures: dict[str, float] = {}
    for target, by_dataset in results.items():
        for dataset, result in by_dataset.items():
            if result.pass_at_1 is None:
                continue
            if len(results) > 1:
                figures[f"eval/{dataset}/{target}/pass_at_1"] = result.pass_at_1.mean
            # Written again by each target: the last one stays.
            figures[f"eval/{dataset}/pass_at_1"] = result.pass_at_1.mean
            figures[f"eval/{dataset}/truncated_ratio"] = result.truncated_ratio
            figures[f"eval/{dataset}/response_tokens_mean"] = result.response_tokens_mean
    return figures


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
