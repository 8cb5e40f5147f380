"""Figures of a batch before training: pure functions from groups to numbers.

Rewards, ratios and the time of judging refer to judged samples, of which quarantined samples are none. Lengths, weight
versions and repeated judgings refer to all samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from deepcoder_trainer.types import Group, Sample

COLLAPSE_TRUNCATED = 0.9
COLLAPSE_REWARD = 0.05


def verdict_counts(samples: Sequence[Sample]) -> dict[str, int]:
    """Return the number of samples by deciding verdict, including `no_code` and `error`."""
    return dict(sorted(Counter(s.outcome.verdict for s in samples).items()))


def quarantined(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples that no judge could judge."""
    return [s for s in samples if s.outcome.reward is None]


def batch_metrics(groups: Sequence[Group], version: int) -> dict[str, float]:
    """Return metrics of a batch that trains weights of `version`. Lengths are in tokens, staleness in versions."""
    samples = [s for g in groups for s in g.samples]
    judged = [s for s in samples if s.outcome.reward is not None]
    rewards = np.array([s.outcome.reward for s in judged], np.float64)
    lengths = np.array([len(s.generation.output_ids) for s in samples], np.float64)
    staleness = np.array([version - g.admitted_version for g in groups], np.float64)
    by_group = [[s.outcome.reward for s in g.samples if s.outcome.reward is not None] for g in groups]
    return {
        "reward_mean": _mean(rewards),
        "truncated_ratio": _mean([s.truncated for s in judged]),
        "no_code_ratio": _mean([s.outcome.verdict == "no_code" for s in judged]),
        "solved_all_ratio": _mean([bool(r) and min(r) > 0 for r in by_group]),
        "solved_none_ratio": _mean([not r or max(r) <= 0 for r in by_group]),
        "groups_dropped": float(sum(g.draw for g in groups)),
        "quarantined_ratio": 1 - len(judged) / len(samples) if samples else 0.0,
        "response_tokens_mean": _mean(lengths),
        "response_tokens_p95": float(np.percentile(lengths, 95)) if len(lengths) else 0.0,
        "response_tokens_max": float(lengths.max(initial=0)),
        "tokens_sampled": float(lengths.sum()),
        "staleness_mean": _mean(staleness),
        "staleness_max": float(staleness.max(initial=0)),
        "version_spans_mean": _mean([len(s.generation.versions) for s in samples]),
        "judge_seconds_mean": _mean([s.outcome.seconds for s in judged]),
        "judge_retries": float(sum(max(0, s.outcome.attempts - 1) for s in samples)),
    }


def is_collapsing(metrics: dict[str, float]) -> bool:
    """Whether nearly all responses are truncated and almost none is rewarded.

    The overlong rule does not punish truncation, so a model in this state gets no signal to leave it.
    """
    return metrics["truncated_ratio"] >= COLLAPSE_TRUNCATED and metrics["reward_mean"] <= COLLAPSE_REWARD


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else 0.0
