"""Plots the curves of a run: reward, truncation and response length over the steps of all stages, and evaluations.

Only this module imports matplotlib, which draws without a display; a trainer image without it can still train.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from deepcoder_contracts.steps import StepRecord
from deepcoder_trainer.plotstyle import INK, MUTED, STYLE
from deepcoder_trainer.report.history import RunHistory

_BLUE, _ORANGE, _GREEN = "#2563eb", "#d97706", "#059669"
_SHADES = ("#f3f6fb", "#ffffff")
_SMOOTH = 5


def draw(history: RunHistory, path: Path, title: str) -> None:
    """Write the picture. The path's suffix sets the format. Raises ModuleNotFoundError without matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    evaluated = next((e for e in reversed(history.evaluations) if e.results.targets), None)
    panels = 3 + (evaluated is not None)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, panels, figsize=(4.1 * panels, 3.5), layout="constrained")
        steps = history.steps
        _panel(axes[0], steps, "reward_mean", "Reward", _BLUE, share=True)
        _panel(axes[1], steps, "truncated_ratio", "Truncated responses", _ORANGE, share=True)
        _panel(axes[2], steps, "response_tokens_mean", "Response length (tokens)", _GREEN, share=False)
        if evaluated is not None:
            _bars(axes[3], evaluated.results)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        figure.savefig(path, dpi=160)
        plt.close(figure)


def boundaries(steps: Sequence[StepRecord]) -> list[int]:
    """Return the position of the first step of each stage except the first stage."""
    return [n for n in range(1, len(steps)) if steps[n].stage != steps[n - 1].stage]


def smoothed(values: Sequence[float], breaks: Sequence[int], window: int = _SMOOTH) -> list[float]:
    """Return a centred moving average that does not average across a break."""
    edges = [0, *breaks, len(values)]
    result = []
    for start, end in pairwise(edges):
        for n in range(start, end):
            near = values[max(start, n - window // 2) : min(end, n + window // 2 + 1)]
            result.append(sum(near) / len(near))
    return result


def _panel(axis: Any, steps: Sequence[StepRecord], metric: str, title: str, colour: str, *, share: bool) -> None:
    values = [s.metrics.get(metric, float("nan")) for s in steps]
    at = range(1, len(values) + 1)
    breaks = boundaries(steps)
    edges = [0, *breaks, len(steps)]
    for number, (start, end) in enumerate(pairwise(edges)):
        axis.axvspan(start + 0.5, end + 0.5, color=_SHADES[number % 2], zorder=0, linewidth=0)
        if steps:
            axis.annotate(
                steps[start].stage, ((start + end + 1) / 2, 1.0), xycoords=("data", "axes fraction"),
                xytext=(0, -4), textcoords="offset points", ha="center", va="top", color=MUTED, fontsize=9,
            )  # fmt: skip
    for start in breaks:
        axis.axvline(start + 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    smooth = smoothed(values, breaks)
    for start, end in pairwise(edges):  # one curve per stage, not joined
        axis.plot(at[start:end], values[start:end], color=colour, alpha=0.25, linewidth=1)
        axis.plot(at[start:end], smooth[start:end], color=colour, linewidth=2)
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel("step")
    axis.margins(x=0)
    high = axis.get_ylim()[1]
    if share:
        axis.set_ylim(0, 1)
        axis.yaxis.set_major_formatter("{x:.0%}" if metric == "truncated_ratio" else "{x:.1f}")
    else:
        axis.set_ylim(0, max(high, 1) * 1.15)


def _bars(axis: Any, results: Any) -> None:
    dataset = next(iter(next(iter(results.in_order.values()))))
    names, means, errors = [], [], []
    for target, by_set in results.in_order.items():
        estimate = by_set[dataset].pass_at_1 if dataset in by_set else None
        if estimate is not None:
            names.append(target)
            means.append(estimate.mean)
            errors.append((estimate.mean - estimate.low, estimate.high - estimate.mean))
    axis.bar(names, means, color=_BLUE, width=0.55, alpha=0.85, zorder=2)
    axis.errorbar(names, means, yerr=list(zip(*errors, strict=True)) if errors else None, fmt="none", ecolor=INK,
                  elinewidth=1.2, capsize=4, zorder=3)  # fmt: skip
    for name, mean in zip(names, means, strict=True):
        axis.annotate(f"{mean:.2f}", (name, 0), xytext=(0, 6), textcoords="offset points", ha="center", color="white",
                      fontweight="bold")  # fmt: skip
    axis.set_ylim(0, 1)
    axis.grid(axis="x", visible=False)
    axis.set_title(f"pass@1 on {dataset}, {results.inputs.get('context_tokens', '?')} tokens", loc="left", fontsize=11)
