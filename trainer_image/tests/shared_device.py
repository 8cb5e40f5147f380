"""A device that scripted samplers and a scripted learner have in turns, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field


@dataclass
class Device:
    """What samplers and a learner share: whoever uses it out of its turn is found at once."""

    pause: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0)
    """How long a change takes."""
    awake: set[int] = field(default_factory=set)
    """Samplers that have all their memory."""
    parked: bool = False
    turns: list[str] = field(default_factory=list)

    def is_the_samplers(self, sampler: object) -> None:
        assert id(sampler) in self.awake, "asked of a sampler that sleeps"
        assert self.parked, "asked of a sampler while the learner is there"

    def is_the_learners(self) -> None:
        assert not self.parked, "asked of a learner that is parked"
        assert not self.awake, "asked of a learner while a sampler is awake"

    def is_between_turns(self, sampler: object) -> None:
        assert id(sampler) not in self.awake, "weights for a sampler that has taken all its memory"
        assert not self.parked, "weights of a learner that is parked"

    async def sleep(self, sampler: object) -> None:
        self.turns.append("sleep")
        await self.pause()
        self.awake.discard(id(sampler))

    async def wake(self, sampler: object) -> None:
        assert self.parked, "a sampler takes memory that the learner has"
        self.turns.append("wake")
        self.awake.add(id(sampler))
        await self.pause()

    async def park(self) -> None:
        self.turns.append("park")
        await self.pause()
        self.parked = True

    async def unpark(self) -> None:
        assert not self.awake, "a learner takes memory that a sampler has"
        self.turns.append("unpark")
        self.parked = False
        await self.pause()
