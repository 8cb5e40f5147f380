"""Waves: requests that an engine must start together and in order, so that every run steps through the same batches.

Ray delivers requests to an actor in any order. In deterministic mode each request names its wave, its position, and the
wave's size. Requests are held here until the last one has arrived. If the controller dies, an incomplete wave keeps its
requests until the actor ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Protocol

from deepcoder_trainer.types import Generation, GenerationRequest


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
