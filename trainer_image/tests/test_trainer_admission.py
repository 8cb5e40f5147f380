"""Admission is held back by judges that are behind, and by nothing else; and weights that reach nobody are an error."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from controller_world import EVALUATE, GROUP, PROBLEMS, PROMPTS, ScriptedSampler, World, scripted_reward, stage_config
from virtual_time import in_virtual_time

from deepcoder_trainer.errors import SamplerLost
from deepcoder_trainer.pipeline import controller
from deepcoder_trainer.rollout.in_flight import InFlight
from deepcoder_trainer.rollout.rollout import Admitted, Rollout, Sampling
from deepcoder_trainer.types import Outcome, Problem


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("capacity", "limit"), [(5, 5), (0, GROUP)])
async def test_there_is_room_while_judges_can_be_given_more_or_do_not_even_have_a_group(
    capacity: int, limit: int
) -> None:
    judged: list[asyncio.Event] = []

    async def slow(problem: Problem, response: str, key: str) -> Outcome:
        judged.append(asyncio.Event())
        await judged[-1].wait()
        return await scripted_reward(problem, response, key)

    sampler = ScriptedSampler(random.Random(1))
    sampler.version = 0
    rollout = Rollout(sampler, slow, Sampling(3, GROUP, 8, 1.0))
    groups = [asyncio.create_task(rollout.group(Admitted(i, 0), PROBLEMS[0])) for i in range(limit // GROUP)]
    await turns()
    async with asyncio.timeout(60):
        await rollout.room(lambda: capacity)
    groups.append(asyncio.create_task(rollout.group(Admitted(9, 0), PROBLEMS[0])))
    await turns()
    waiting = asyncio.create_task(rollout.room(lambda: capacity))
    await turns()
    assert not waiting.done()
    for each in judged[:GROUP]:
        each.set()
    async with asyncio.timeout(60):
        await waiting
    for each in judged:
        each.set()
    await asyncio.gather(*groups)
    assert (rollout.sampling.count, rollout.judging.count) == (0, 0)


async def test_judges_that_are_behind_keep_the_next_batch_from_being_sampled() -> None:
    judging, judged = InFlight(), asyncio.Event()

    async def slow(problem: Problem, response: str, key: str) -> Outcome:
        with judging.one():
            await judged.wait()
        return await scripted_reward(problem, response, key)

    for gated in (False, True):
        judged.clear()
        world = World(stage_config(4), reward=slow)
        world.asked = []  # type: ignore[attr-defined]
        generate = world.sampler.generate

        async def noted(request: Any, generate: Any = generate, world: World = world) -> Any:
            world.asked.append(request.request_id.split("/")[1])  # type: ignore[attr-defined]
            return await generate(request)

        world.sampler.generate = noted
        if gated:
            world.gate = lambda: judging.room(lambda: 2)
        task = asyncio.create_task(world.run())
        await turns(300)
        assert len(set(world.asked)) == (PROMPTS if gated else 2 * PROMPTS)
        judged.set()
        assert (await task).step == 4


@in_virtual_time
async def test_idle_time_is_what_nothing_is_under_way_in() -> None:
    under_way = InFlight()
    told = [under_way.idle_ratio()]
    await asyncio.sleep(3)
    with under_way.one():
        await asyncio.sleep(1)
    told.append(under_way.idle_ratio())
    await asyncio.sleep(2)
    assert [*told, under_way.idle_ratio()] == pytest.approx([0, 0.75, 1])


@in_virtual_time
async def test_weights_that_reach_nobody_in_time_end_the_run_and_cost_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "PUSH_SHARE", 0.2 / 1800)
    world = World(stage_config(4, every=100))
    world.learner.on_train = lambda step: setattr(world.sampler, "hold_push", asyncio.Event()) if step == 2 else None
    with pytest.raises(SamplerLost, match="version 2 have reached no sampler"):
        await world.run()
    assert [s.state.step for s in world.checkpoints.saved] == [2]


async def test_a_steps_report_says_what_waits_for_what() -> None:
    world = World(stage_config(3))
    await world.run()
    gauges = world.notes.steps[1].gauges
    assert gauges["policy_version"] == 2
    assert sum(v for name, v in gauges.items() if name.startswith("groups_active{state=")) == PROMPTS
    assert 0 <= gauges["idle_ratio{role=learner}"] <= 1
    assert "idle_ratio{role=sampler}" in gauges


@in_virtual_time
async def test_samplers_that_answer_an_evaluation_are_not_idle() -> None:
    world = World(stage_config(4, every=100, eta=0, evaluate=EVALUATE))

    async def take_time(_step: int) -> None:
        await asyncio.sleep(10)

    world.on_evaluate = take_time
    await world.run(seconds=60)
    assert [step for step, _ in world.evaluated] == [2, 4]
    assert world.notes.steps[1].gauges["idle_ratio{role=sampler}"] < 0.1
