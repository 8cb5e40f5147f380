"""Combines the sums of all ranks into a training step's metrics: plain numbers, because the driver has no torch.

The 95th percentile of |learner - sampler| comes from a histogram, because sums over ranks give no percentile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

AGREED = ("grad_norm", "grad_norm_max", "skipped_optimizer_steps")
"""Figures that are the same on every rank."""

LARGEST = ("recompute_seconds", "forward_backward_seconds", "optimizer_seconds", "update_seconds", "memory_peak_bytes")
"""Figures whose maximum over ranks is reported. All others are summed over ranks."""

GAP_BINS_PER_DECADE = 8
GAP_DECADES = (-8, 2)
GAP_BINS = GAP_BINS_PER_DECADE * (GAP_DECADES[1] - GAP_DECADES[0])
"""Bins of the histogram of |learner - sampler| log-probability, equally wide in log10 from 1e-8 to 1e2."""

GAP_EDGES = tuple(10.0**exponent for exponent in range(-6, 2))
"""For each of these, the share of tokens with a larger difference is a metric: means and quantiles hide the tail."""
GAP_ABOVE = "logprob_gap_above/"
"""Prefix of the names of these metrics."""


def combine(answers: Sequence[dict[str, list[float]]]) -> dict[str, float]:
    """Return the metrics of a step from each rank's figures. Sums are added in rank order, so they are reproducible."""
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
    """Return token means from sums over all micro-batches and ranks. A sum is a list of one, or of histogram bins."""
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
    """Return the upper edge of the bin that holds the quantile, or 0 for the lowest bin or an empty histogram."""
    total, seen = sum(histogram), 0.0
    if not total:
        return 0.0
    for i, count in enumerate(histogram):
        seen += count
        if seen >= q * total:
            return 0.0 if i == 0 else 10.0 ** (GAP_DECADES[0] + (i + 1) / GAP_BINS_PER_DECADE)
    return 10.0 ** GAP_DECADES[1]


def _share_above(histogram: list[float], edge: float) -> float:
    """Return the share of the histogram above one of `GAP_EDGES`; each is the lower edge of a bin."""
    total = sum(histogram)
    first = (round(math.log10(edge)) - GAP_DECADES[0]) * GAP_BINS_PER_DECADE
    return sum(histogram[first:]) / total if total else 0.0
