"""Waves: requests that an engine must start together and in order, so that every run steps through the same batches.

In deterministic mode each request names its wave, its position, and the wave's size. The group divides a wave by
position into one for each engine. Ray delivers requests to an actor in any order, so they are held here until the last
one has arrived. If the controller dies, an incomplete wave keeps its requests until the actor ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Protocol

from deepcoder_trainer.types import Generation, GenerationRequest, Wave


def share_of(request: GenerationRequest, wave: Wave, engines: int) -> tuple[int, GenerationRequest]:
    """Return the engine for a request of a wave, and the request as part of that engine's own, smaller wave."""
    number = wave.position % engines
    size = (wave.size - number + engines - 1) // engines
    return number, replace(request, wave=Wave(wave.name, wave.position // engines, size))


class Begins(Protocol):
    """The part of an engine that `Waves` needs."""

    async def begin(self, requests: Sequence[GenerationRequest]) -> list[Awaitable[Generation]]:
        """Start requests together, in this order."""
        ...


class Waves:
    """Holds requests until their wave is complete."""

    def __init__(self) -> None:
        self._held: dict[str, dict[int, tuple[GenerationRequest, asyncio.Future[Awaitable[Generation]]]]] = {}

    async def generate(self, engine: Begins, request: GenerationRequest) -> Generation:
        """Sample one response. A request of a wave starts when the wave is complete."""
        if request.wave is None:
            [response] = await engine.begin([request])
            return await response
        begun: asyncio.Future[Awaitable[Generation]] = asyncio.get_running_loop().create_future()
        held = self._held.setdefault(request.wave.name, {})
        held[request.wave.position] = (request, begun)
        if len(held) == request.wave.size:
            del self._held[request.wave.name]
            await self._begin(engine, [held[position] for position in sorted(held)])
        return await (await begun)

    @staticmethod
    async def _begin(
        engine: Begins, wave: list[tuple[GenerationRequest, asyncio.Future[Awaitable[Generation]]]]
    ) -> None:
        try:
            responses = await engine.begin([request for request, _ in wave])
        except Exception as error:
            for _, begun in wave:
                begun.set_exception(error)
            return
        for (_, begun), response in zip(wave, responses, strict=True):
            begun.set_result(response)
