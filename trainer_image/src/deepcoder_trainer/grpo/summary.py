"""Metrics of a training step from the sums that every rank kept: plain numbers, for the driver, which has no torch.

The 95th percentile of |learner - sampler| comes from a histogram, since sums over ranks cannot give one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

AGREED = ("grad_norm", "grad_norm_max", "skipped_optimizer_steps")
"""The same on every rank."""

LARGEST = ("recompute_seconds", "forward_backward_seconds", "optimizer_seconds", "update_seconds", "memory_peak_bytes")
"""Of which the rank with most of it counts. All else adds up over ranks."""

GAP_BINS_PER_DECADE = 8
GAP_DECADES = (-8, 2)
GAP_BINS = GAP_BINS_PER_DECADE * (GAP_DECADES[1] - GAP_DECADES[0])
"""Bins of the histogram of |learner - sampler| log-probability, equal in log10 from 1e-8 to 1e2."""

GAP_EDGES = tuple(10.0**exponent for exponent in range(-6, 2))
"""Where the share of tokens with a larger difference is told: the tails, which a mean and a quantile do not show."""
GAP_ABOVE = "logprob_gap_above/"
"""Begins the names of those shares."""


def combine(answers: Sequence[dict[str, list[float]]]) -> dict[str, float]:
    """Metrics of a step from what each rank kept, added in rank order."""
    sums: dict[str, list[float]] = {}
    for answer in answers:
        for name, values in answer.items():
            if name not in AGREED and name not in LARGEST:
                sums[name] = [a + b for a, b in zip(sums[name], values, strict=True)] if name in sums else list(values)
    metrics = summarize(sums)
    metrics |= {name: answers[0][name][0] for name in AGREED}
    metrics |= {name: max(a[name][0] for a in answers) for name in LARGEST}
    if sums["peak_flops"][0]:
        metrics["mfu_ratio"] = sums["model_flops"][0] / (sums["peak_flops"][0] * metrics["update_seconds"])
    return metrics


def summarize(sums: dict[str, list[float]]) -> dict[str, float]:
    """Token means from sums over all micro-batches and ranks; each sum is a list (of one, or of histogram bins)."""
    tokens = max(sums["tokens"][0], 1.0)
    mean = {name: values[0] / tokens for name, values in sums.items() if name not in ("tokens", "gap_histogram")}
    metrics = {
        "loss": mean["loss"],
        "entropy": mean["entropy"],
        "ratio_mean": mean["ratio"],
        "advantage_mean": mean["advantage"],
        "ratio_below_clip_ratio": mean["ratio_below_clip"],
        "ratio_above_clip_ratio": mean["ratio_above_clip"],
        "clipped_low_ratio": mean["clipped_low"],
        "clipped_high_ratio": mean["clipped_high"],
        "mismatch_kl": mean["mismatch_kl"],
        "logprob_gap_abs_mean": mean["logprob_gap"],
        "logprob_gap_abs_p95": _quantile(sums["gap_histogram"], 0.95),
        "tokens_trained": sums["tokens"][0],
    }
    metrics |= {f"{GAP_ABOVE}{edge:g}": _share_above(sums["gap_histogram"], edge) for edge in GAP_EDGES}
    if "importance" in mean:
        metrics["importance_weight_mean"] = mean["importance"]
    if "reference_kl" in mean:
        metrics["reference_kl"] = mean["reference_kl"]
    return metrics


def _quantile(histogram: list[float], q: float) -> float:
    """Upper edge of the bin that holds the quantile; 0 of an empty histogram."""
    total, seen = sum(histogram), 0.0
    if not total:
        return 0.0
    for i, count in enumerate(histogram):
        seen += count
        if seen >= q * total:
            return 0.0 if i == 0 else 10.0 ** (GAP_DECADES[0] + (i + 1) / GAP_BINS_PER_DECADE)
    return 10.0 ** GAP_DECADES[1]


def _share_above(histogram: list[float], edge: float) -> float:
    """Share of the bins' content that lies above one of `GAP_EDGES`, which bins begin at."""
    total = sum(histogram)
    first = (round(math.log10(edge)) - GAP_DECADES[0]) * GAP_BINS_PER_DECADE
    return sum(histogram[first:]) / total if total else 0.0
