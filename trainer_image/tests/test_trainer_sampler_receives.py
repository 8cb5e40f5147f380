"""Weights that the learner sends once, from card to card: who receives them, who joins at the next version, and when
that nobody is left who has them ends the attempt. Engines and learner are scripted, the group is real.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Sequence

import numpy as np
import pytest

from deepcoder_trainer.errors import LearnerLost, SamplerLost
from deepcoder_trainer.sampler import group as group_module
from deepcoder_trainer.sampler.group import SamplerGroup
from deepcoder_trainer.types import BroadcastWeights, Finish, Generation, GenerationRequest, WeightRefs

OFFER = BroadcastWeights("10.0.0.1", 4711, (("w", (2, 2)),))
REQUEST = GenerationRequest("r", np.zeros(1, np.int32), 10, 1.0, seed=1)


class Air:
    """What is between learner and engines: an engine has weights when it listens while they are sent."""

    def __init__(self) -> None:
        self.sent: list[list[str]] = []
        self.listening: dict[str, asyncio.Event] = {}
        self.failure: Exception | None = None

    async def send(self, receivers: Sequence[str]) -> None:
        self.sent.append(list(receivers))
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        for name in receivers:
            while name not in self.listening and name not in DEAD:
                await asyncio.sleep(0)
            if name not in DEAD:
                self.listening.pop(name).set()

    @property
    def refs(self) -> WeightRefs:
        return WeightRefs((), "bfloat16", broadcast=OFFER, send=self.send)


DEAD: set[str] = set()


class Listening:
    """An engine."""

    def __init__(self, air: Air) -> None:
        self.air = air
        self.name = ""
        self.version: int | None = None
        self.dies = False

    async def start(self) -> None:
        await asyncio.sleep(0)

    async def update_weights(self, refs: WeightRefs, version: int, clear_cache: bool) -> None:
        there = pickle.loads(pickle.dumps(refs))
        assert there.broadcast is not None
        assert (there.broadcast.host, there.broadcast.tensors) == (OFFER.host, OFFER.tensors)
        self.name = there.broadcast.receiver
        if self.dies:
            DEAD.add(self.name)
            raise SamplerLost(f"{self.name} died while it received")
        sent = self.air.listening.setdefault(self.name, asyncio.Event())
        await sent.wait()
        self.version = version

    async def generate(self, request: GenerationRequest) -> Generation:
        assert self.version is not None, "asked before it had weights"
        if self.dies:
            raise SamplerLost(f"{self.name} died")
        return Generation(np.zeros(1, np.int32), np.zeros(1, np.float32), Finish.STOP, self.name, ())

    async def sleep(self) -> None: ...

    async def wake(self) -> None: ...

    async def close(self) -> None: ...


@pytest.fixture
def air() -> Air:
    DEAD.clear()
    return Air()


class Group:
    def __init__(self, air: Air, size: int) -> None:
        self.engines: list[Listening] = []
        self.group = SamplerGroup(self._make, size)
        self.air = air

    def _make(self) -> Listening:
        self.engines.append(Listening(self.air))
        return self.engines[-1]

    async def push(self, version: int) -> None:
        async with asyncio.timeout(60):
            await self.group.update_weights(self.air.refs, version)

    async def __aenter__(self) -> Group:
        await self.group.start()
        await self.push(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.group.close()

    async def replaced(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.engines) < count or self.group._replacing:
                await asyncio.sleep(0)


async def test_each_sampler_has_a_name_and_all_get_every_version(air: Air) -> None:
    async with Group(air, 3) as world:
        await world.push(1)
        assert air.sent == [["sampler-1", "sampler-2", "sampler-3"]] * 2
        assert [engine.version for engine in world.engines] == [1, 1, 1]
        assert [engine.name for engine in world.engines] == air.sent[0]


async def test_a_replacement_joins_at_the_next_version_and_is_asked_nothing_before(air: Air) -> None:
    async with Group(air, 2) as world:
        world.engines[0].dies = True
        answers = await asyncio.gather(*(world.group.generate(REQUEST) for _ in range(4)))
        assert {answer.text for answer in answers} == {"sampler-2"}
        await world.replaced(3)
        assert world.engines[2].version is None
        answers = await asyncio.gather(*(world.group.generate(REQUEST) for _ in range(4)))
        assert {answer.text for answer in answers} == {"sampler-2"}
        await world.push(1)
        assert air.sent[-1] == ["sampler-2", "sampler-3"]
        answers = await asyncio.gather(*(world.group.generate(REQUEST) for _ in range(4)))
        assert {answer.text for answer in answers} == {"sampler-2", "sampler-3"}


async def test_one_that_dies_while_it_receives_is_replaced_and_the_others_sample(air: Air) -> None:
    async with Group(air, 2) as world:
        world.engines[1].dies = True
        await world.push(1)
        assert (await world.group.generate(REQUEST)).text == "sampler-1"
        assert world.group.failed_updates == 1
        await world.replaced(3)


async def test_without_anybody_who_has_the_newest_weights_the_attempt_ends_instead_of_waiting(air: Air) -> None:
    async with Group(air, 2) as world:
        for engine in world.engines:
            engine.dies = True
        with pytest.raises(SamplerLost, match="newest weights"):
            async with asyncio.timeout(60):
                await world.group.generate(REQUEST)
        await world.replaced(4)
        await world.push(1)
        assert (await world.group.generate(REQUEST)).text in ("sampler-3", "sampler-4")


async def test_a_learner_that_is_lost_while_it_sends_is_told_at_once(air: Air, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_module, "UPDATE_SECONDS", 60.0)
    async with Group(air, 2) as world:
        air.failure = LearnerLost("rank 1 died")
        with pytest.raises(LearnerLost):
            await world.push(1)
