"""A live view in the terminal for runs outside Kubernetes: stage, curves, verdicts, time by phase, the last checkpoint.

It is shown only on a terminal; in a pod or a pipe, log lines give the same information. While the view is active, log
lines are printed above it.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from deepcoder_contracts.progress import TrainerPhase
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.protocols import StepReport

_BARS = "▁▂▃▄▅▆▇█"
_HISTORY = 60
_CURVES = (
    ("reward", "reward_mean", 1.0),
    ("truncated", "truncated_ratio", 1.0),
    ("response tokens", "response_tokens_mean", None),
    ("entropy", "entropy", None),
    ("grad norm", "grad_norm", None),
)


def sparkline(values: list[float], top: float | None = None) -> str:
    """Return a line of block characters, one per value, scaled to `top` or to the largest value."""
    highest = top or max([*values, 1e-12])
    return "".join(_BARS[min(len(_BARS) - 1, max(0, int(v / highest * len(_BARS))))] for v in values)


class LiveView:
    """An observer that redraws on every step, for all stages of a run."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._curves: dict[str, deque[float]] = {}
        self._stage: StageConfig | None = None
        self._phase = TrainerPhase.STARTING
        self._report: StepReport | None = None

    def __enter__(self) -> LiveView:
        root = logging.getLogger()
        self._handlers, root.handlers = (
            root.handlers,
            [RichHandler(console=self._console, show_path=False, log_time_format="%H:%M:%S")],
        )
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        logging.getLogger().handlers = self._handlers

    def begin(self, config: StageConfig) -> None:
        """Begin a new stage with empty curves."""
        self._stage, self._report, self._phase = config, None, TrainerPhase.STARTING
        self._curves = {metric: deque(maxlen=_HISTORY) for _, metric, _ in _CURVES}
        self._draw()

    def on_phase(self, phase: TrainerPhase) -> None:
        """Show the phase."""
        self._phase = phase
        self._draw()

    def on_step(self, report: StepReport) -> None:
        """Add the step to the curves."""
        self._report = report
        for metric, values in self._curves.items():
            # A curve cannot show values that are not finite, as after a divergence.
            if math.isfinite(value := report.metrics.get(metric, math.nan)):
                values.append(value)
        self._draw()

    def _draw(self) -> None:
        self._live.update(self._render(), refresh=True)

    def _render(self) -> Group:
        stage = self._stage.stage if self._stage else None
        step = self._report.step if self._report else 0
        head = Text()
        if stage is not None:
            head.append(f" {stage.name} ", style="bold reverse")
            head.append(f"  {self._phase.value}   context {stage.context_tokens}   step {step}/{stage.max_steps}")
        curves = Table.grid(padding=(0, 2))
        for label, metric, top in _CURVES:
            values = list(self._curves.get(metric, ()))
            if values:
                curves.add_row(label, f"{values[-1]:.3f}", Text(sparkline(values, top), style="cyan"))
        parts: list[Text | Table] = [head, curves]
        if self._report is not None:
            parts.append(Text("verdicts  " + _pairs(self._report.verdicts, "{}")))
            parts.append(Text("seconds   " + _pairs(self._report.phase_seconds, "{:.1f}"), style="dim"))
        return Group(*parts)


def _pairs(values: Mapping[str, float], form: str) -> str:
    return "  ".join(f"{name} {form.format(value)}" for name, value in values.items())
