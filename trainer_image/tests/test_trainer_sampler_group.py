"""Several samplers behind one face: load, deaths, replacements, waves. Engines are scripted, the group is real."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from virtual_time import in_virtual_time

from deepcoder_contracts.stage import StageConfig, StageType
from deepcoder_trainer.errors import SamplerLost
from deepcoder_trainer.sampler import actor as actor_module
from deepcoder_trainer.sampler import group as group_module
from deepcoder_trainer.sampler import start as start_module
from deepcoder_trainer.sampler.errors import WeightsLost
from deepcoder_trainer.sampler.group import MOVES, REPLACEMENTS, ActorEngine, SamplerGroup
from deepcoder_trainer.types import Finish, Generation, GenerationRequest, Wave, WeightRefs

REFS = WeightRefs((), "float32")


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_module, "PAUSE_SECONDS", 0.0)


@dataclass
class Scripted:
    number: int
    dead: bool = False
    refuses_weights: bool = False
    cannot_fetch: bool = False
    slow_to_fetch: asyncio.Event | None = None
    refuses_start: bool = False
    version: int | None = None
    asked: list[str] = field(default_factory=list)
    gate: asyncio.Event | None = None
    closed: bool = False

    async def start(self) -> None:
        if self.refuses_start:
            raise RuntimeError("no node has room")

    async def generate(self, request: GenerationRequest) -> Generation:
        assert self.version is not None, "asked before it had weights"
        self.asked.append(request.request_id)
        if self.gate is not None:
            await self.gate.wait()
        if self.dead:
            raise SamplerLost(f"engine {self.number} died")
        return Generation(np.zeros(1, np.int32), np.zeros(1, np.float32), Finish.STOP, str(self.number), ())

    async def update_weights(self, refs: WeightRefs, version: int, clear_cache: bool) -> None:
        if self.slow_to_fetch is not None and version == 1:
            await self.slow_to_fetch.wait()
        if self.cannot_fetch and version == 1:
            raise WeightsLost("the learner's node died")
        if self.refuses_weights:
            raise SamplerLost("update failed")
        self.version = version

    async def close(self) -> None:
        self.closed = True


class Factory:
    def __init__(self) -> None:
        self.made: list[Scripted] = []
        self.next: list[Scripted] = []

    def __call__(self) -> Scripted:
        engine = self.next.pop(0) if self.next else Scripted(0)
        engine.number = len(self.made)
        self.made.append(engine)
        return engine


def request(name: str, tokens: int = 10, wave: Wave | None = None) -> GenerationRequest:
    return GenerationRequest(name, np.zeros(1, np.int32), tokens, 1.0, seed=1, wave=wave)


async def started(factory: Factory, size: int) -> SamplerGroup:
    group = SamplerGroup(factory, size)
    await group.start()
    await group.update_weights(REFS, 0)
    return group


@in_virtual_time
async def test_a_sampler_that_answers_nothing_is_replaced_and_its_requests_move(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group_module, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(group_module, "TOKEN_SECONDS", 0.0)
    factory = Factory()
    factory.next = [Scripted(0, gate=asyncio.Event())]
    group = await started(factory, 1)
    update = asyncio.create_task(_update_when(factory, group))
    async with asyncio.timeout(60):
        generation = await group.generate(request("r"))
    await update
    assert generation.text == "1"
    assert factory.made[0].closed
    assert group.restarts == 1
    await group.close()


@in_virtual_time
async def test_a_sampler_is_silent_no_longer_than_the_stage_may_stall() -> None:
    factory = Factory()
    factory.next = [Scripted(0, gate=asyncio.Event())]
    group = SamplerGroup(factory, 1, longest_silence=0.2)
    await group.start()
    await group.update_weights(REFS, 0)
    update = asyncio.create_task(_update_when(factory, group))
    async with asyncio.timeout(60):
        generation = await group.generate(request("r", tokens=32768))
    await update
    assert generation.text == "1"
    await group.close()


@pytest.mark.parametrize("stage_type", StageType)
async def test_silence_is_told_before_the_operator_counts_the_stage_as_stalled(
    stage_type: StageType, make_config: Callable[..., StageConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stage without steps does not stall while it sends heartbeats, so a long response has its time there."""

    async def up(group: SamplerGroup) -> None: ...

    monkeypatch.setattr(start_module, "read_model_config", lambda folder: None)
    monkeypatch.setattr(start_module, "engine_settings", lambda config, model: None)
    monkeypatch.setattr(SamplerGroup, "start", up)
    config = make_config()
    config = config.model_copy(update={"stage": config.stage.model_copy(update={"type": stage_type})})
    group = await start_module.start_samplers(config, tmp_path)
    assert group.longest_silence == (0.8 * 1800 if stage_type is StageType.TRAIN else math.inf)


async def _update_when(factory: Factory, group: SamplerGroup) -> None:
    async with asyncio.timeout(60):
        while len(factory.made) < 2 or factory.made[1].version is None:
            await asyncio.sleep(0.01)


@in_virtual_time
async def test_a_request_may_wait_in_a_sampler_as_long_as_others_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_module, "SILENT_SECONDS", 0.25)
    monkeypatch.setattr(group_module, "TOKEN_SECONDS", 0.0)
    factory = Factory()
    group = await started(factory, 1)
    factory.made[0].gate = asyncio.Event()
    waiting = asyncio.create_task(group.generate(request("last")))
    while not factory.made[0].asked:
        await asyncio.sleep(0)
    gate, factory.made[0].gate = factory.made[0].gate, None
    for number in range(5):
        await asyncio.sleep(0.1)
        await group.generate(request(f"r{number}"))
    assert not waiting.done()
    gate.set()
    assert (await waiting).text == "0"
    assert group.restarts == 0


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.ObjectLostError("00" * 28, None, "sampler"),
        ray.exceptions.ActorUnavailableError("its node is away", b"1" * 16),
        ray.exceptions.ActorDiedError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_answer_that_is_lost_with_its_node_is_the_sampler_s_loss(error: Exception) -> None:
    """A long response is fetched from the sampler's node, which may go when it is sampled and before it is fetched."""

    async def lost(_request: GenerationRequest) -> Generation:
        raise error

    actor = SimpleNamespace(generate=SimpleNamespace(remote=lost))
    with pytest.raises(SamplerLost):
        await ActorEngine(actor).generate(request("long"))


async def test_the_least_loaded_engine_gets_the_next_request() -> None:
    factory = Factory()
    factory.next = [Scripted(0, gate=asyncio.Event()) for _ in range(2)]
    group = await started(factory, 2)
    tasks = [asyncio.create_task(group.generate(request(f"r{i}"))) for i in range(4)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert [len(e.asked) for e in factory.made] == [2, 2]
    for engine in factory.made:
        assert engine.gate is not None
        engine.gate.set()
    await asyncio.gather(*tasks)
    await group.close()


async def test_requests_of_a_dead_engine_go_to_others_and_it_is_replaced_with_the_newest_weights() -> None:
    factory = Factory()
    group = await started(factory, 2)
    await group.update_weights(REFS, 7)
    factory.made[0].dead = True
    answers = await asyncio.gather(*(group.generate(request(f"r{i}")) for i in range(6)))
    assert len(answers) == 6
    assert group.restarts == 1
    while len(group._members) < 2:
        await asyncio.sleep(0)
    assert factory.made[0].closed
    assert factory.made[2].version == 7
    await group.close()


async def test_a_request_that_kills_every_engine_it_meets_stops_moving() -> None:
    factory = Factory()
    factory.next = [Scripted(0, dead=True) for _ in range(MOVES + 5)]
    group = await started(factory, 1)
    with pytest.raises(SamplerLost):
        await group.generate(request("poison"))
    assert sum(e.asked.count("poison") for e in factory.made) == MOVES + 1
    await group.close()


async def test_without_any_engine_left_the_loss_reaches_the_caller_and_nobody_waits_for_ever() -> None:
    factory = Factory()
    factory.next = [Scripted(0, dead=True), Scripted(0, refuses_start=True)]
    group = await started(factory, 1)
    with pytest.raises(SamplerLost, match="no node has room"):
        await group.generate(request("r"))
    await group.close()


async def test_a_replacement_that_does_not_start_is_not_the_last_one_while_others_sample() -> None:
    factory = Factory()
    group = await started(factory, 2)
    factory.made[0].dead = True
    refused = [Scripted(0, refuses_start=True) for _ in range(REPLACEMENTS - 1)]
    factory.next = [*refused, started_late := Scripted(0)]
    await group.generate(request("moves"))
    async with asyncio.timeout(60):
        while started_late.version is None:
            await asyncio.sleep(0)
    assert len(group.each()) == 2
    assert all(engine.closed for engine in refused)
    await group.close()


async def test_a_place_whose_replacements_never_start_stays_empty_after_a_bounded_number_of_them() -> None:
    factory = Factory()
    group = await started(factory, 2)
    factory.made[0].dead = True
    factory.next = [Scripted(0, refuses_start=True) for _ in range(200)]
    await group.generate(request("moves"))
    async with asyncio.timeout(60):
        while group._replacing:
            await asyncio.sleep(0)
    assert len(factory.made) == 2 + REPLACEMENTS
    assert len(group.each()) == 1
    await group.close()


async def test_an_engine_that_fails_an_update_never_answers_from_old_weights() -> None:
    factory = Factory()
    group = await started(factory, 2)
    factory.made[1].refuses_weights = True
    await group.update_weights(REFS, 1)
    await asyncio.gather(*(group.generate(request(f"r{i}")) for i in range(4)))
    assert factory.made[1].asked == []
    assert factory.made[1].closed or group.restarts == 1
    await group.close()


async def test_weights_that_no_engine_can_load_end_the_push_after_a_bounded_number_of_engines() -> None:
    factory = Factory()
    group = await started(factory, 2)
    for engine in factory.made:
        engine.refuses_weights = True
    factory.next = [Scripted(0, refuses_weights=True) for _ in range(200)]
    async with asyncio.timeout(60):
        with pytest.raises(SamplerLost, match="no sampler is left: update failed"):
            await group.update_weights(REFS, 1)
    assert len(factory.made) <= 2 * (1 + REPLACEMENTS)
    assert all(engine.closed for engine in factory.made)
    await group.close()


async def test_replacements_in_a_row_come_after_longer_and_longer_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    factory = Factory()
    group = await started(factory, 1)
    monkeypatch.setattr(group_module, "PAUSE_SECONDS", 5.0)
    monkeypatch.setattr("deepcoder_trainer.sampler.group.asyncio.sleep", sleep)
    factory.made[0].refuses_weights = True
    factory.next = [Scripted(0, refuses_weights=True) for _ in range(REPLACEMENTS)]
    with pytest.raises(SamplerLost):
        await group.update_weights(REFS, 1)
    assert pauses == [5.0, 10.0, 20.0]
    await group.close()


async def test_an_engine_that_answered_may_be_replaced_as_often_as_before() -> None:
    factory = Factory()
    group = await started(factory, 1)
    for _ in range(3 * REPLACEMENTS):
        await group.generate(request("before"))
        factory.made[-1].dead = True
        await group.generate(request("after"))
    assert group.restarts == 3 * REPLACEMENTS
    await group.close()


async def test_weights_that_are_gone_end_the_push_at_once_and_cost_no_engine() -> None:
    factory = Factory()
    group = await started(factory, 2)
    for engine in factory.made:
        engine.cannot_fetch = True
    async with asyncio.timeout(60):
        with pytest.raises(WeightsLost, match="node died"):
            await group.update_weights(REFS, 1)
    assert len(factory.made) == 2
    await group.close()


async def test_weights_that_are_gone_after_newer_ones_came_cost_the_engine_that_they_were_half_loaded_into() -> None:
    factory = Factory()
    group = await started(factory, 1)
    [engine] = factory.made
    engine.cannot_fetch, engine.slow_to_fetch = True, asyncio.Event()
    old = asyncio.create_task(group.update_weights(REFS, 1))
    for _ in range(10):
        await asyncio.sleep(0)
    await group.update_weights(REFS, 2)
    engine.slow_to_fetch.set()
    await old
    assert (await group.generate(request("r"))).text == "1"
    assert engine.closed
    await group.close()


async def test_a_chunk_that_died_with_its_learner_is_told_apart_from_one_that_comes_too_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fails(error: Exception) -> None:
        raise error

    with pytest.raises(WeightsLost, match="lost with the learner"):
        await actor_module.arrived(fails(ray.exceptions.OwnerDiedError("00" * 28, None, "learner")))
    with pytest.raises(WeightsLost):
        await actor_module.arrived(fails(ray.exceptions.ActorDiedError()))
    with pytest.raises(ray.exceptions.ObjectFetchTimedOutError):
        await actor_module.arrived(fails(ray.exceptions.ObjectFetchTimedOutError("00" * 28, None, "learner")))
    monkeypatch.setattr(actor_module, "FETCH_SECONDS", 0.01)
    with pytest.raises(TimeoutError):
        await actor_module.arrived(asyncio.sleep(5))


async def test_a_wave_is_shared_out_by_position_so_that_each_engine_gets_the_same_requests() -> None:
    factory = Factory()
    group = await started(factory, 2)
    wave = [request(f"r{i}", wave=Wave("w", i, 5)) for i in range(5)]
    for order in ([0, 1, 2, 3, 4], [4, 1, 0, 3, 2]):
        for engine in factory.made:
            engine.asked.clear()
        await asyncio.gather(*(group.generate(wave[i]) for i in order))
        assert sorted(factory.made[0].asked) == ["r0", "r2", "r4"]
        assert sorted(factory.made[1].asked) == ["r1", "r3"]
    await group.close()
