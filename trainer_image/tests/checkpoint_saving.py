"""Both halves of a save in a row, for tests that have the whole state at once."""

from __future__ import annotations

from typing import Any

from deepcoder_trainer.checkpoint.state import PipelineState
from deepcoder_trainer.checkpoint.writer import CheckpointWriter


async def save(writer: CheckpointWriter, state: PipelineState, **rest: Any) -> None:
    """Copy the learner's weights aside and commit them with `state`."""
    await writer.copy(state.step)
    await writer.commit(state, **rest)
