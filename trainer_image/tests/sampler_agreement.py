"""A live engine that gets a real learner's weights, and whether both give tokens the same probabilities."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import numpy as np
import pytest
from lazy_modules import LazyModule

from deepcoder_trainer.pipeline.probe import Probe
from deepcoder_trainer.problems.prompt import EncodedProblem
from deepcoder_trainer.sampler import engine as engines
from deepcoder_trainer.sampler.settings import EngineSettings
from deepcoder_trainer.types import CardWeights, Generation, GenerationRequest, Problem, WeightRefs

torch = LazyModule("torch")

PROBLEMS = [
    EncodedProblem(Problem(f"p{i}", "test", "", ()), np.array([5, 9, 20 + i, 7 + i], np.int32)) for i in range(8)
]


class OneEngine:
    """The `Sampler` protocol over one engine in this process."""

    def __init__(self, engine: engines.Engine) -> None:
        self.engine = engine

    async def generate(self, request: GenerationRequest) -> Generation:
        [response] = await self.engine.begin([request])
        return await response

    def each(self) -> list[Callable[[GenerationRequest], Any]]:
        return [self.generate] * len(PROBLEMS)

    async def update_weights(self, refs: WeightRefs, version: int) -> None:
        def fetcher(chunk: Any) -> Callable[[], Any]:
            async def fetch() -> Any:
                return chunk

            return fetch

        fetchers = [fetcher(chunk) for chunk in refs.chunks]
        await engines.update_weights(
            self.engine,
            fetchers,
            version,
            dtype=refs.dtype,
            clear_cache=True,
            cards=refs.cards,
            broadcast=refs.broadcast,
        )


@asynccontextmanager
async def started(model: Path, *, stepped: bool, dtype: str = "float32") -> AsyncIterator[OneEngine]:
    settings = EngineSettings(dtype, 128, 32, 2048, 64 << 20)
    os.environ.update(engines.environment(settings))
    if stepped:
        live: engines.Engine = await engines.start_engine(str(model), settings)
    else:
        live = await engines.start_async_engine(engines.engine_arguments(str(model), settings))
    try:
        yield OneEngine(live)
    finally:
        await live.close()


async def gap_after_a_sync(sampler: Any, learner: Any, version: int) -> float:
    await sampler.update_weights(await learner.export_weights(), version)
    return (await probed(sampler, learner, version))["sync_logprob_gap_max"]


async def probed(sampler: Any, learner: Any, version: int) -> dict[str, float]:
    probe = Probe(learner.rank.recipe.model_copy(update={"deterministic": True}), PROBLEMS, sampler)
    await probe.begin(version, version)  # it is waited for
    return await probe.figures(learner)


async def agree(sampler: Any, learner: Any, make_batch: Callable[..., Any]) -> None:
    gaps = []
    for version in range(1, 4):
        await learner.train(make_batch(version))
        gaps.append(await gap_after_a_sync(sampler, learner, version))
    assert max(gaps) < 1e-5, gaps
    await learner.train(make_batch(4))
    found = await probed(sampler, learner, 3)
    assert found["sync_logprob_gap_max"] > 1e-3, "weights that were not pushed are seen"


async def agree_by_broadcast(
    sampler: OneEngine, learner: Any, make_batch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's workers receive what the learner sends meanwhile, as from card to card, on gloo."""
    from deepcoder_trainer.learner.weight_sender import WeightSender

    sender = WeightSender("127.0.0.1", 1, torch.device("cpu"))
    sending: list[asyncio.Future[list[str]]] = []

    async def export_weights() -> WeightRefs:
        sending.append(asyncio.ensure_future(asyncio.to_thread(learner.rank.send_weights, sender, ["sampler-1"])))
        return WeightRefs((), "float32", broadcast=sender.offer(learner.rank.shapes())).to("sampler-1")

    monkeypatch.setattr(learner, "export_weights", export_weights)
    try:
        for version in (6, 7):
            await learner.train(make_batch(version))
            assert await gap_after_a_sync(sampler, learner, version) < 1e-5
            assert await sending[-1] == []
    finally:
        sender.close()
    await learner.train(make_batch(8))
    assert (await probed(sampler, learner, 7))["sync_logprob_gap_max"] > 1e-3, "weights that were not sent are seen"


async def agree_by_way_of_the_card(
    sampler: OneEngine, learner: Any, make_batch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All weights in one buffer, as on a card that both share; the handle alone is not CUDA's."""
    from deepcoder_trainer.learner.weights import in_one_buffer, padded
    from deepcoder_trainer.sampler import weights  # it imports vLLM, which must find its environment

    await learner.train(make_batch(5))
    whole = dict(learner.rank._whole(torch.float32))
    buffer, placed = in_one_buffer(whole.items(), padded(w.nbytes for w in whole.values()), torch.device("cpu"))
    handle = (0, b"\x00\xffhandle", buffer.nbytes)
    opened = []

    def open_buffer(device: torch.device, given: Sequence[Any]) -> torch.Tensor:
        opened.append(tuple(given))
        return buffer.clone()

    monkeypatch.setattr(weights, "card_of", lambda device: "GPU-1")
    monkeypatch.setattr(weights, "open_buffer", open_buffer)
    shared = WeightRefs((), "float32", tuple(CardWeights(f"GPU-{n}", handle, tuple(placed)) for n in (0, 1)))
    monkeypatch.setattr(learner, "export_weights", AsyncMock(return_value=shared))
    assert await gap_after_a_sync(sampler, learner, 5) < 1e-5
    assert opened == [handle]
