"""What tests of checkpoints share: whole saves, a run of a few steps, and damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint.opening import open_run_storage
from deepcoder_trainer.checkpoint.reader import find_resume_point
from deepcoder_trainer.checkpoint.state import PipelineState
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.checkpoint.writer import CheckpointWriter
from deepcoder_trainer.running.export_check import Comparison
from deepcoder_trainer.stopping import Stop


async def save(writer: CheckpointWriter, state: PipelineState, **rest: Any) -> None:
    """Copy the learner's weights aside and commit them with `state`."""
    await writer.copy(state.step)
    await writer.commit(state, **rest)


OTHER_DIGEST = "sha256:" + "b" * 64


def state(step: int, groups: tuple = ()) -> PipelineState:
    """The controller's part after a step."""
    return PipelineState(
        step=step,
        total_steps=step,
        version=step,
        next_group_id=4 * step,
        groups=groups,
        history={"reward_mean": (0.5,) * step},
    )


async def run_to(
    config: StageConfig, learner: Any, make_batch: Callable, workdir: Path, last: int, first: int = 1, **made_by: Any
) -> CheckpointWriter:
    """Claim, then train and save each step; the writer, with everything committed."""
    writer = CheckpointWriter(config, learner, workdir=workdir, **made_by)
    await writer.claim()
    point = await find_resume_point(config, learner, workdir=workdir)
    if point is not None:
        await learner.load(point.directory, optimizer=True)
        writer.parent = point.ref
    for step in range(first, last + 1):
        await learner.train(make_batch(step))
        await save(writer, state(step, make_batch(step + 1).groups), metrics={"reward_mean": 0.5})
    await writer.wait()
    return writer


EXPORT = "short/export/step-000001.a001"
"""Of the first step of the stage that `run_to` trains."""


async def trained(
    config: StageConfig, learner: Any, make_batch: Callable, workdir: Path, stop: Stop | None = None
) -> tuple[CheckpointWriter, Comparison]:
    """A writer with a committed checkpoint, which compares as an attempt's does; and the comparison."""
    writer = await run_to(config, learner, make_batch, workdir, last=1)
    comparison = Comparison(config, stop or Stop(), learner)
    writer.compare = comparison.compare
    return writer, comparison


def card_of(config: StageConfig, export: str = EXPORT) -> str:
    """The card of an export."""
    return store_of(config).get_bytes(f"{export}/README.md").decode()


def store_of(config: StageConfig) -> ObjectStore:
    """Where a config's run is stored."""
    return open_run_storage(config.storage)


def weights(learner: Any) -> dict[str, np.ndarray]:
    """Copies of all weights, by name."""
    return {n: v.numpy().copy() for n, v in learner.rank.weights()}


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Alter a byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
