"""Draws an evaluation: pass@1 of each problem set and of its parts, with intervals.

Only this module imports matplotlib, which draws without a display.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepcoder_trainer.evaluation.results import DatasetResult, Estimate, EvaluationResults, part_order
from deepcoder_trainer.plotstyle import STYLE

_COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626")

Bars = list[tuple[str, list[Estimate | None]]]
"""Label and each target's estimate."""


def draw(results: EvaluationResults, path: Path) -> None:
    """Write the picture. The path's suffix sets the format. Raises ModuleNotFoundError without matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    targets = results.in_order
    names = list(next(iter(targets.values()))) if targets else []
    panels: list[tuple[str, Bars]] = [("pass@1", [(n, [t[n].pass_at_1 for t in targets.values()]) for n in names])]
    for name in names:
        for title, field in (("by difficulty", "by_difficulty"), ("by month", "by_month")):
            if bars := _bars([t[name] for t in targets.values()], field):
                panels.append((f"{name} {title}", bars))
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(len(panels), 1, figsize=(8, 2.6 * len(panels)), layout="constrained", squeeze=False)
        for axis, (title, bars) in zip(axes[:, 0], panels, strict=True):
            _panel(axis, title, bars, list(targets))
        figure.savefig(path, dpi=140)
        plt.close(figure)


def _bars(results: list[DatasetResult], field: str) -> Bars:
    labels = sorted({label for r in results for label in getattr(r, field)}, key=part_order)
    return [
        (label, [part.pass_at_1 if (part := getattr(r, field).get(label)) else None for r in results])
        for label in labels
    ]


def _panel(axis: Any, title: str, bars: Bars, targets: list[str]) -> None:
    width = 0.8 / max(1, len(targets))
    for number, target in enumerate(targets):
        shown = [(at, e) for at, (_, each) in enumerate(bars) if (e := each[number]) is not None]
        places = [at + (number - (len(targets) - 1) / 2) * width for at, _ in shown]
        spread = [[e.mean - e.low for _, e in shown], [e.high - e.mean for _, e in shown]]
        axis.bar(
            places, [e.mean for _, e in shown], width=width * 0.9, color=_COLOURS[number % len(_COLOURS)], label=target
        )
        axis.errorbar(places, [e.mean for _, e in shown], yerr=spread, fmt="none", ecolor="#1f2937", capsize=3)
    axis.set_xticks(range(len(bars)), [label for label, _ in bars])
    axis.set_ylim(0, 1)
    axis.set_axisbelow(True)
    axis.grid(axis="x", visible=False)
    axis.set_title(title, loc="left", fontsize=11)
    if len(targets) > 1:
        axis.legend(frameon=False, fontsize=8)
