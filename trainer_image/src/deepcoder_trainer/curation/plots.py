"""The plots of the report. Only this module imports matplotlib, which draws without a display."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl

from deepcoder_trainer.curation import filters
from deepcoder_trainer.curation.prepare import Candidate
from deepcoder_trainer.curation.tally import Tally
from deepcoder_trainer.plotstyle import STYLE

_KEPT, _BAR = "#059669", "#2563eb"
_SHADES = ("#94a3b8", "#f59e0b", "#ef4444", "#8b5cf6", "#0ea5e9", "#ec4899", "#a3a3a3", "#84cc16", "#f97316", "#14b8a6")


def draw_counts(path: Path, tally: Tally) -> None:
    """Draw one bar per source: the problems that are kept, and those that each filter drops."""
    sources = tally.sources
    with _figure(path, 1, height=1.2 + 0.5 * len(sources)) as (axis,):
        left = [0] * len(sources)
        names = [n for n in filters.ALL if any(tally.by_filter[s][n] for s in sources)]
        series = [("kept", _KEPT, [tally.kept[s] for s in sources])]
        series += [
            (n, _SHADES[i % len(_SHADES)], [tally.by_filter[s][n] for s in sources]) for i, n in enumerate(names)
        ]
        for name, colour, counts in series:
            axis.barh(sources, counts, left=left, color=colour, label=name)
            left = [a + b for a, b in zip(left, counts, strict=True)]
        axis.invert_yaxis()
        axis.set_title("Problems by source and filter", loc="left")
        axis.legend(frameon=False, fontsize=8, bbox_to_anchor=(1.01, 1), loc="upper left")


def draw_shapes(path: Path, kept: Sequence[Candidate]) -> None:
    """Draw histograms of tests, prompt tokens and pass rates of the kept problems."""
    panels: list[tuple[str, list[float], int]] = []
    counts = [("Tests of a problem", [c.tests for c in kept])]
    counts += [("Tokens of a prompt", [c.tokens for c in kept if c.tokens is not None])]
    panels += [(title, [*values], min(40, max(values) - min(values) + 1)) for title, values in counts if values]
    if rates := [c.pass_rate for c in kept if c.pass_rate is not None]:
        panels.append(("Pass rate", rates, 20))
    with _figure(path, max(1, len(panels)), height=3.0) as axes:
        for axis, (title, values, bins) in zip(axes, panels, strict=False):
            axis.hist(values, bins=bins, color=_BAR)
            axis.set_title(title, loc="left")


@contextmanager
def _figure(path: Path, panels: int, *, height: float) -> Iterator[list[Any]]:
    """Yield the axes of a figure, and save it at the end."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with mpl.rc_context(STYLE):
        width = 8.5 if panels == 1 else 4.6 * panels
        figure, axes = plt.subplots(1, panels, figsize=(width, height), layout="constrained", squeeze=False)
        try:
            yield list(axes[0])
            figure.savefig(path, dpi=120)
        finally:
            plt.close(figure)
