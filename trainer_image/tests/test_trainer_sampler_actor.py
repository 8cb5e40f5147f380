"""A sampler as a real Ray actor, with an engine that is scripted: what reaches it, and past what."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Iterator, Sequence

import numpy as np
import pytest
import ray
from ray import cloudpickle

from deepcoder_trainer.sampler import actor as actors
from deepcoder_trainer.sampler.settings import EngineSettings
from deepcoder_trainer.types import Finish, Generation, GenerationRequest, Wave, WeightRefs

REQUESTS = 300
WEIGHTS = WeightRefs((), "float32")


class Held:
    """An engine whose responses are done when it gets other weights."""

    def __init__(self) -> None:
        self.begun, self.updated = asyncio.Event(), asyncio.Event()

    async def begin(self, requests: Sequence[GenerationRequest]) -> list[Awaitable[Generation]]:
        self.begun.set()
        return [self.response() for _ in requests]

    async def response(self) -> Generation:
        await self.updated.wait()
        return Generation(np.zeros(1, np.int32), np.zeros(1, np.float32), Finish.STOP, "", ())


class HeldActor(actors.SamplerActor):
    async def start(self) -> int | None:
        self._engine = self.held = Held()  # type: ignore[assignment]
        return None

    async def update_weights(self, refs: WeightRefs, version: int, clear_cache: bool) -> None:
        self._version = version
        if version > 1:
            self.held.updated.set()

    async def begun(self) -> None:
        await self.held.begun.wait()


@pytest.fixture
def sent_whole() -> Iterator[None]:
    """Ray's workers cannot import this file."""
    this = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(this)
    yield
    cloudpickle.unregister_pickle_by_value(this)


@pytest.mark.usefixtures("ray_cluster", "sent_whole")
async def test_an_update_and_the_last_request_of_a_wave_reach_an_engine_that_is_asked_for_more_than_it_runs_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(actors, "SamplerActor", HeldActor)
    actor = actors.create_actor({}, EngineSettings("float32", 8, 1, 8, None))
    try:
        async with asyncio.timeout(240):
            await actor.start.remote()
            await actor.update_weights.remote(WEIGHTS, 1, True)
            asked = [
                actor.generate.remote(
                    GenerationRequest(f"r{i}", np.zeros(1, np.int32), 4, 1.0, wave=Wave("w", i, REQUESTS))
                )
                for i in range(REQUESTS)
            ]
            await actor.begun.remote()
            await actor.update_weights.remote(WEIGHTS, 2, True)
            assert len(await asyncio.gather(*asked)) == REQUESTS
    finally:
        ray.kill(actor)
