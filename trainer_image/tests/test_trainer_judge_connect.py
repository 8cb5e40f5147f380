"""A judge client as a stage config asks for it: how long it waits, and whose the work beside it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from deepcoder_contracts.stage import JudgeBackend, JudgeEndpoint, StageConfig
from deepcoder_trainer.judge.connect import connect_judge


@pytest.fixture
def pool(tmp_path: Path) -> JudgeEndpoint:
    token = tmp_path / "token"
    token.write_text("t")
    return JudgeEndpoint(backend=JudgeBackend.POOL, host="localhost", port=1, token_file=str(token))


@pytest.mark.parametrize(("stall_seconds", "patience"), [(1800, 900), (60, 30), (7200, 1800)])
async def test_a_submission_is_given_up_before_the_stage_counts_as_stalled(
    stall_seconds: int, patience: float, make_config: Callable[..., StageConfig], pool: JudgeEndpoint
) -> None:
    config = make_config(judge=pool)
    config = config.model_copy(update={"stage": config.stage.model_copy(update={"stall_seconds": stall_seconds})})
    async with connect_judge(config, None) as client:
        assert client.patience == patience


async def test_closing_the_client_leaves_the_work_beside_it_to_its_task(
    make_config: Callable[..., StageConfig], pool: JudgeEndpoint
) -> None:
    async with connect_judge(make_config(judge=pool), None) as client:
        task = asyncio.create_task(client.run())
        await asyncio.sleep(0.05)
    await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
