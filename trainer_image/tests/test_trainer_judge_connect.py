"""The judge's background work belongs to whoever runs it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from deepcoder_contracts.stage import JudgeBackend, JudgeEndpoint, StageConfig
from deepcoder_trainer.judge.connect import connect_judge


async def test_closing_the_client_leaves_the_work_beside_it_to_its_task(
    make_config: Callable[..., StageConfig], tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("t")
    judge = JudgeEndpoint(backend=JudgeBackend.POOL, host="localhost", port=1, token_file=str(token))
    async with connect_judge(make_config(judge=judge), None) as (_client, keep_going):
        task = asyncio.create_task(keep_going())
        await asyncio.sleep(0.05)
    await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
