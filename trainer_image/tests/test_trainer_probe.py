"""The probe of a running attempt: whom it asks, what it costs the loop, what it tells, and when it comes again.

Loop and sampler group are real, engines and learner scripted. Real engines against a real learner are in
sampler_agreement.py.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from controller_world import PROBLEMS, World, stage_config
from virtual_time import in_virtual_time

from deepcoder_trainer.errors import SamplerLost
from deepcoder_trainer.pipeline.probe import EVERY_STEPS, RAREST_STEPS, Probe, summary
from deepcoder_trainer.sampler.group import SamplerGroup
from deepcoder_trainer.types import Batch, Finish, Generation, GenerationRequest, WeightRefs

REFS = WeightRefs((), "float32")
RECIPE = stage_config(1).recipe
STRICT_TO_THE_BIT = stage_config(1, recipe={"deterministic": True}).recipe


class Engine:
    """Its tokens have the log-probability that its weights give: the version's, or those of another."""

    def __init__(self, *, stale: bool = False) -> None:
        self.stale = stale
        self.version = 0
        self.asked: list[str] = []
        self.long = asyncio.Event()

    async def start(self) -> None: ...

    async def generate(self, request: GenerationRequest) -> Generation:
        self.asked.append(request.request_id)
        if not request.request_id.startswith("probe/"):
            await self.long.wait()
        logprob = -1.0 - (self.version - 1 if self.stale else self.version)
        return Generation(np.zeros(2, np.int32), np.full(2, logprob, np.float32), Finish.STOP, "", ())

    async def update_weights(self, refs: WeightRefs, version: int, clear_cache: bool) -> None:
        self.version = version

    async def close(self) -> None: ...


class Scores:
    """A learner that gives every token the log-probability -1 - version."""

    def __init__(self, version: int = 1) -> None:
        self.version = version

    async def gaps(self, batch: Batch) -> list[float]:
        found = [-1.0 - self.version - s.generation.logprobs for s in batch.samples]
        return [float(gap) for gaps in found for gap in gaps]


class Listed:
    """Samplers one by one, as `SamplerGroup` lists them."""

    def __init__(self, *asks: Callable[[GenerationRequest], Awaitable[Generation]]) -> None:
        self.asks = asks

    def each(self) -> Sequence[Callable[[GenerationRequest], Awaitable[Generation]]]:
        return self.asks


async def answers(request: GenerationRequest) -> Generation:
    return Generation(np.zeros(2, np.int32), np.full(2, -2.0, np.float32), Finish.STOP, "", ())


async def never(request: GenerationRequest) -> Generation:
    return await asyncio.Future()


async def lost(request: GenerationRequest) -> Generation:
    raise SamplerLost("gone")


async def round_of(probe: Probe, step: int) -> dict[str, float]:
    await probe.begin(step, 1)
    for _ in range(20):
        await asyncio.sleep(0)
    await probe.end()
    return await probe.figures(Scores())  # type: ignore[arg-type]


async def test_each_sampler_is_asked_however_loaded_so_that_one_with_other_weights_is_seen() -> None:
    engines = [Engine(stale=True), Engine(), Engine()]
    left = list(engines)
    group = SamplerGroup(lambda: left.pop(0), len(engines))
    await group.start()
    await group.update_weights(REFS, 1)
    # The one with other weights has more to do than the others: who asks for the least loaded never gets it.
    for at, engine in enumerate(engines):
        count = 3 if engine.stale else 1
        group._members[at].load += count * 16_384
    found = await round_of(Probe(RECIPE, PROBLEMS, group), 0)
    assert all(engine.asked for engine in engines)
    assert found["sync_samplers_probed"] == 3
    assert found["sync_logprob_gap_max"] == 1.0
    await group.close()


async def test_a_sampler_that_dies_while_it_is_probed_is_replaced_as_any_other() -> None:
    engines = [Engine(), Engine(), Engine()]
    engines[0].generate = lost  # type: ignore[method-assign]
    left = list(engines)
    group = SamplerGroup(lambda: left.pop(0), 2)
    await group.start()
    await group.update_weights(REFS, 1)
    found = await round_of(Probe(RECIPE, PROBLEMS, group), 0)
    assert (found["sync_samplers_probed"], found["sync_logprob_gap_max"]) == (1, 0.0)
    assert group.restarts == 1
    await group.close()


@pytest.mark.parametrize("order", ["Strict", "Window"])
@pytest.mark.parametrize("ask", [never, lost], ids=["full", "lost"])
@in_virtual_time
async def test_samplers_that_do_not_answer_a_probe_cost_the_loop_nothing(order: str, ask: Any) -> None:
    began = asyncio.get_running_loop().time()
    world = World(stage_config(12, every=100, order=order))
    world.probe = Probe(world.config.recipe, PROBLEMS, Listed(ask))
    ending = await world.run()
    assert ending.step == 12
    assert asyncio.get_running_loop().time() == began
    assert world.notes.steps[0].gauges["sync_samplers_probed"] == 0
    assert not any("sync_logprob_gap_max" in report.gauges for report in world.notes.steps)
    assert sum(report.phase_seconds.get("probe", 0.0) for report in world.notes.steps) < 1


async def test_a_probe_that_is_under_way_has_ended_before_the_sampler_sleeps() -> None:
    world = World(stage_config(2, every=1, eta=0, placement="Colocated"))
    asleep: list[bool] = []

    async def slow(request: GenerationRequest) -> Generation:
        try:
            return await never(request)
        finally:
            device = world.sampler.device
            asleep.append(not device.awake)

    world.probe = Probe(world.config.recipe, PROBLEMS, Listed(slow))
    await world.run()
    assert asleep
    assert not any(asleep)


async def test_what_was_pushed_is_probed_now_and_then_in_the_turn_of_each() -> None:
    world = World(stage_config(21, every=100, eta=0, placement="Colocated"))
    world.probe = Probe(world.config.recipe, PROBLEMS, world.sampler)
    await world.run()
    told = [report.step for report in world.notes.steps if "sync_logprob_gap_max" in report.gauges]
    assert told == [1, 11, 21], "weights of version 0, 10 and 20, scored before they change"
    timed = [report.step for report in world.notes.steps if "probe" in report.phase_seconds]
    assert timed == [1, 10, 11, 20, 21], "asked and scored, and in no other step"


async def test_in_deterministic_mode_nothing_is_left_in_an_engine_when_the_loop_goes_on() -> None:
    going: set[str] = set()

    async def slow(request: GenerationRequest) -> Generation:
        going.add(request.request_id)
        await asyncio.sleep(0.05)
        going.discard(request.request_id)
        return await answers(request)

    probe = Probe(STRICT_TO_THE_BIT, PROBLEMS, Listed(slow, slow))
    await probe.begin(0, 1)
    assert going == set()
    assert (await probe.figures(Scores()))["sync_samplers_probed"] == 2  # type: ignore[arg-type]


async def test_a_round_that_missed_one_tells_of_the_others_and_the_next_come_more_and_more_seldom() -> None:
    samplers = Listed(answers, never)
    probe = Probe(RECIPE, PROBLEMS, samplers)
    begun = []
    for step in range(1000):
        if not probe.due(step):
            continue
        begun.append(step)
        found = await round_of(probe, step)
        assert (found["sync_samplers_probed"], found["sync_logprob_gap_max"]) == (1, 0.0)
    pauses = [b - a for a, b in itertools.pairwise(begun)]
    assert pauses[:4] == [2 * EVERY_STEPS, 20, 40, 80]
    assert pauses[-2:] == [RAREST_STEPS] * 2
    samplers.asks = (answers, answers)
    await round_of(probe, 1120)
    assert not probe.due(1129)
    assert probe.due(1130), "once all answer it is as often as at first"


async def test_a_fault_of_the_probe_itself_is_not_hidden() -> None:
    async def refuses(request: GenerationRequest) -> Generation:
        raise ValueError("too long")

    world = World(stage_config(2, every=1, eta=1))
    world.probe = Probe(world.config.recipe, PROBLEMS, Listed(refuses))
    with pytest.raises(ValueError, match="too long"):
        await world.run()


async def test_a_stop_leaves_no_probe_under_way() -> None:
    world = World(stage_config(3, every=1, eta=1))
    ended = []

    async def until_ended(request: GenerationRequest) -> Generation:
        world.stop.request(60, "test")
        try:
            return await never(request)
        finally:
            ended.append(request.request_id)

    world.probe = Probe(world.config.recipe, PROBLEMS, Listed(until_ended))
    ending = await world.run()
    assert ending.drained
    assert len(ended) == 4


def test_what_is_told_of_differences() -> None:
    low, high = math.log(1 - RECIPE.clip_low), math.log(1 + RECIPE.clip_high)
    gaps = [0.0] * 96 + [low + 1e-6, high - 1e-6, low - 1e-6, high + 1e-6]
    told = summary(gaps, RECIPE)
    assert told["sync_outside_clip_ratio"] == pytest.approx(0.02)
    assert told["sync_logprob_gap_max"] == pytest.approx(high, abs=1e-5)
    assert told["sync_logprob_gap_p95"] == 0.0
    assert summary([0.5] * 10 + [-0.1] * 10, RECIPE)["sync_logprob_gap_p95"] == 0.5


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_token_without_a_probability_is_the_largest_difference(bad: float) -> None:
    told = summary([0.0, bad], RECIPE)
    assert told["sync_logprob_gap_max"] == math.inf
    assert told["sync_logprob_gap_p95"] == math.inf
    assert told["sync_outside_clip_ratio"] == 0.5
