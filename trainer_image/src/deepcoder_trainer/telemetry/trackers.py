"""TensorBoard and Weights & Biases, for those who look there: switched on by environment variables.

A pod template or a shell sets `DEEPCODER_TENSORBOARD_DIR` to a folder for event files, or `WANDB_PROJECT` (with
`WANDB_MODE=offline` where there is no network). Neither package is needed otherwise; asking for one that is not
installed is refused before anything starts. Steps are numbered over all stages, so that curves join up.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from deepcoder_contracts.progress import TrainerPhase
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.ports import Observer, StepReport

TENSORBOARD_VARIABLE = "DEEPCODER_TENSORBOARD_DIR"
WANDB_VARIABLE = "WANDB_PROJECT"


def figures(report: StepReport) -> dict[str, float]:
    """All numbers of a step under the names that both trackers group by."""
    return {
        **{name if "/" in name else f"train/{name}": v for name, v in report.metrics.items() if math.isfinite(v)},
        **{f"machines/{_plain(name)}": v for name, v in report.gauges.items() if math.isfinite(v)},
        **{f"seconds/{name}": v for name, v in report.phase_seconds.items()},
        **{f"verdicts/{name}": float(v) for name, v in report.verdicts.items()},
    }


def _plain(name: str) -> str:
    """`idle_ratio{role=learner}` as `idle_ratio_learner`: neither tracker has labels."""
    base, _, label = name.rstrip("}").partition("{")
    return f"{base}_{label.partition('=')[2]}" if label else base


class TensorBoard:
    """Writes event files."""

    def __init__(self, folder: str, config: StageConfig) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise BadConfig(
                f"{TENSORBOARD_VARIABLE} is set, but tensorboard is not installed: install it, or unset the variable",
                field=TENSORBOARD_VARIABLE,
            ) from error
        self._writer = SummaryWriter(f"{folder}/{config.run.name}/{config.stage.name}")

    def on_phase(self, phase: TrainerPhase) -> None:
        """Not of interest."""

    def on_step(self, report: StepReport) -> None:
        """Write its numbers."""
        for name, value in figures(report).items():
            self._writer.add_scalar(name, value, report.total_steps)
        self._writer.flush()


class Wandb:
    """One W&B run for a run's stages and attempts, found again by the run's uid."""

    def __init__(self, config: StageConfig) -> None:
        try:
            import wandb
        except ImportError as error:
            raise BadConfig(
                f"{WANDB_VARIABLE} is set, but wandb is not installed: install it, or unset the variable",
                field=WANDB_VARIABLE,
            ) from error
        recipe: Mapping[str, Any] = config.recipe.model_dump(mode="json", by_alias=True)
        self._run = wandb.init(id=config.run.uid, name=config.run.name, resume="allow", config=dict(recipe))

    def on_phase(self, phase: TrainerPhase) -> None:
        """Not of interest."""

    def on_step(self, report: StepReport) -> None:
        """Log its numbers."""
        self._run.log(figures(report), step=report.total_steps)


def trackers(config: StageConfig) -> list[Observer]:
    """Those that the environment asks for; raises BadConfig for one that is not installed."""
    found: list[Observer] = []
    if folder := os.environ.get(TENSORBOARD_VARIABLE):
        found.append(TensorBoard(folder, config))
    if os.environ.get(WANDB_VARIABLE):
        found.append(Wandb(config))
    return found
