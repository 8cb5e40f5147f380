"""Connects to the judge that a stage config names.

`Judge.run` does the background work. Whoever calls it owns the coroutine and must end it.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from deepcoder_contracts.manifest import RunIdentity
from deepcoder_contracts.stage import JudgeBackend, JudgeEndpoint, StageConfig, StageType
from deepcoder_trainer.judge.client import PATIENCE, JudgeClient
from deepcoder_trainer.judge.endpoints import Endpoints, PoolResolver
from deepcoder_trainer.judge.local import BASE_URL, LocalJudge
from deepcoder_trainer.judge.servers import JudgeServers
from deepcoder_trainer.judge.together.transport import TogetherTransport

JUDGING_SHARE = 0.8
"""Share of a Train stage's stallSeconds that judging one program may take."""


@asynccontextmanager
async def connect_judge(config: StageConfig, local: LocalJudge | None) -> AsyncIterator[JudgeClient]:
    """Return the back end that the stage config names, ready for submissions."""
    # A batch that waits for judges must come back unjudged before the stage counts as stalled. A judge that is at work
    # may have more of that time than one that is not there. Without steps, heartbeats show that the stage is alive.
    stall_seconds = config.stage.stall_seconds
    longest = JUDGING_SHARE * stall_seconds if config.stage.type is StageType.TRAIN else math.inf
    async with open_judge(config.judge, config.run, local, min(PATIENCE, stall_seconds / 2), longest) as client:
        yield client


@asynccontextmanager
async def open_judge(
    settings: JudgeEndpoint,
    run: RunIdentity,
    local: LocalJudge | None,
    patience: float = PATIENCE,
    longest: float = math.inf,
) -> AsyncIterator[JudgeClient]:
    """Return the back end of these settings, ready for submissions of `run`."""
    match settings.backend:
        case JudgeBackend.POOL:
            client = _pool(settings, run, patience, longest)
        case JudgeBackend.LOCAL:
            if local is None:
                raise RuntimeError("the local judge is started before anything else, and was not")
            await local.ready()
            client = local_judge(local, run, patience, longest)
        case JudgeBackend.TOGETHER:
            client = _together(settings, patience, longest)
    try:
        yield client
    finally:
        await client.close()


def local_judge(
    local: LocalJudge, run: RunIdentity, patience: float = PATIENCE, longest: float = math.inf
) -> JudgeClient:
    """Return the back end for the judge that the trainer itself has started."""
    transport = JudgeServers(run, connector=local.connector())
    return JudgeClient(Endpoints([BASE_URL]), transport, patience=patience, longest=longest, beside=local.watch)


def _pool(settings: JudgeEndpoint, run: RunIdentity, patience: float, longest: float) -> JudgeClient:
    assert settings.host is not None, "the contract sees to it"
    assert settings.token_file is not None, "the contract sees to it"
    endpoints = Endpoints()
    resolver = PoolResolver(endpoints, settings.host, settings.port)
    transport = JudgeServers(run, token_file=Path(settings.token_file))
    return JudgeClient(endpoints, transport, patience=patience, longest=longest, beside=resolver.run)


def _together(settings: JudgeEndpoint, patience: float, longest: float) -> JudgeClient:
    assert settings.together is not None, "the contract sees to it"
    together = settings.together
    endpoints = Endpoints([together.endpoint], limit=together.concurrency, slots=together.concurrency)
    return JudgeClient(endpoints, TogetherTransport(Path(together.key_file)), patience=patience, longest=longest)
