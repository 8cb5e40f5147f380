"""TensorBoard and Weights & Biases, switched on by environment variables.

A pod template or a shell sets `DEEPCODER_TENSORBOARD_DIR` to a folder for event files, or `WANDB_PROJECT` (with
`WANDB_MODE=offline` if there is no network). Neither package is needed otherwise; a tracker that is requested but not
installed is refused before anything starts. A W&B server that does not answer delays the start by at most
`WANDB_SECONDS`. If it does not answer or refuses the key, the attempt continues without it, because its curves are
stored anyway.

Steps are numbered over all stages, so that curves join up. After a crash, the steps since the newest checkpoint are
trained again, and their figures may differ. TensorBoard drops its old figures of these steps. W&B accepts each of its
own step numbers only once, so it shows both, over a step that is logged as a metric.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Mapping
from typing import Any

from deepcoder_contracts.progress import TrainerPhase
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.background import abandonable
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.protocols import Observer, StepReport

log = logging.getLogger(__name__)

TENSORBOARD_VARIABLE = "DEEPCODER_TENSORBOARD_DIR"
WANDB_VARIABLE = "WANDB_PROJECT"
WANDB_STEP = "step"
WANDB_SECONDS = 60.0
"""Longest wait for W&B at the start."""


def figures(report: StepReport) -> dict[str, float]:
    """Return all numbers of a step under names that both trackers group by prefix."""
    return {
        **{name if "/" in name else f"train/{name}": v for name, v in report.metrics.items() if math.isfinite(v)},
        **{f"machines/{_plain(name)}": v for name, v in report.gauges.items() if math.isfinite(v)},
        **{f"seconds/{name}": v for name, v in report.phase_seconds.items()},
        **{f"verdicts/{name}": float(v) for name, v in report.verdicts.items()},
    }


def _plain(name: str) -> str:
    """Rename `idle_ratio{role=learner}` to `idle_ratio_learner`, because neither tracker has labels."""
    base, _, label = name.rstrip("}").partition("{")
    return f"{base}_{label.partition('=')[2]}" if label else base


class TensorBoard:
    """Writes TensorBoard event files."""

    def __init__(self, folder: str, config: StageConfig) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise BadConfig(
                f"{TENSORBOARD_VARIABLE} is set, but tensorboard is not installed: install it, or unset the variable",
                field=TENSORBOARD_VARIABLE,
            ) from error
        self._open = SummaryWriter
        self._folder = f"{folder}/{config.run.name}/{config.stage.name}"
        self._writer: SummaryWriter | None = None

    def on_phase(self, phase: TrainerPhase) -> None:
        """Ignored."""

    def on_step(self, report: StepReport) -> None:
        """Write the step's numbers; an earlier attempt's numbers from this attempt's first step on are hidden."""
        if self._writer is None:
            trained = report.total_steps if report.groups else report.total_steps + 1
            self._writer = self._open(self._folder, purge_step=trained)
        for name, value in figures(report).items():
            self._writer.add_scalar(name, value, report.total_steps)
        self._writer.flush()


class Wandb:
    """One W&B run for all stages and attempts of a run, identified by the run's uid."""

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
        self._run.define_metric(WANDB_STEP, hidden=True)
        self._run.define_metric("*", step_metric=WANDB_STEP)

    def on_phase(self, phase: TrainerPhase) -> None:
        """Ignored."""

    def on_step(self, report: StepReport) -> None:
        """Log the step's numbers."""
        self._run.log({**figures(report), WANDB_STEP: report.total_steps})


async def start_trackers(config: StageConfig) -> list[Observer]:
    """Start the trackers that the environment requests. Raises BadConfig if one is not installed."""
    found: list[Observer] = []
    if folder := os.environ.get(TENSORBOARD_VARIABLE):
        found.append(await abandonable(TensorBoard, folder, config))
    if os.environ.get(WANDB_VARIABLE):
        try:
            async with asyncio.timeout(WANDB_SECONDS):
                found.append(await abandonable(Wandb, config))
        except TimeoutError:
            log.error(
                "W&B did not answer within %.0f s, this attempt continues without it: check WANDB_BASE_URL and the "
                "network, or set WANDB_MODE=offline and sync later",
                WANDB_SECONDS,
            )
        except BadConfig:
            raise
        except Exception as error:  # any of W&B's errors; a tracker must not end the run
            log.error("W&B cannot be used (%s), this attempt continues without it: check WANDB_API_KEY", error)
    return found
