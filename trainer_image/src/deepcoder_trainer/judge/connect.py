"""A judge client as the stage config asks for it, with the background work that keeps it going.

That work is given as a function: whoever calls it owns the coroutine and ends it, nobody else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from deepcoder_contracts.stage import JudgeBackend, StageConfig
from deepcoder_trainer.judge.client import PATIENCE, JudgeClient
from deepcoder_trainer.judge.endpoints import Endpoints, PoolResolver
from deepcoder_trainer.judge.local import BASE_URL, LocalJudge


@asynccontextmanager
async def connect_judge(
    config: StageConfig, local: LocalJudge | None
) -> AsyncIterator[tuple[JudgeClient, Callable[[], Coroutine[Any, Any, None]]]]:
    """The client, and what is to run beside training: it resolves the pool, or watches the local judge."""
    settings = config.judge
    # A batch that waits for judges is to come back unjudged before the stage counts as stalled.
    patience = min(PATIENCE, config.stage.stall_seconds / 2)
    if settings.backend is JudgeBackend.LOCAL:
        if local is None:
            raise RuntimeError("the local judge is started before anything else, and was not")
        await local.ready()
        client = JudgeClient(Endpoints([BASE_URL]), config.run, connector=local.connector(), patience=patience)
        keep_going = local.watch
    else:
        assert settings.host is not None, "the contract sees to it"
        assert settings.token_file is not None, "the contract sees to it"
        endpoints = Endpoints()
        client = JudgeClient(endpoints, config.run, token_file=Path(settings.token_file), patience=patience)
        keep_going = PoolResolver(endpoints, settings.host, settings.port).run
    try:
        yield client, keep_going
    finally:
        await client.close()
