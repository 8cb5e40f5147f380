"""Sampler and learner on shared devices: who has them when, at starts, stops and ends.

The loop is real, the device says who uses it out of turn; test_trainer_pipeline_properties.py does it by chance.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from controller_world import EVALUATE, World, finished_as_one, stage_config, trained, until

from deepcoder_contracts.progress import TrainerPhase

COLOCATED: dict[str, Any] = {"eta": 0, "placement": "Colocated"}
TURN = ["sleep", "unpark", "train", "park", "wake"]


async def test_a_step_is_a_turn_of_each() -> None:
    world = World(stage_config(3, every=1, **COLOCATED))
    ending = await world.run()
    assert (ending.step, ending.drained) == (3, False)
    device = world.learner.device
    assert device is not None
    assert device.turns == ["park", "wake", *TURN * 3, "sleep", "unpark"]
    assert all(report.phase_seconds.keys() >= {"turn", "train", "sync"} for report in world.notes.steps)
    apart = World(stage_config(3, every=1, eta=0))
    await apart.run()
    assert world.learner.weights == apart.learner.weights, "the same as on devices of their own"


async def test_evaluations_are_sampled_in_the_samplers_turn_and_saves_copied_in_the_learners() -> None:
    world = World(stage_config(5, every=2, evaluate=EVALUATE, **COLOCATED))

    async def evaluated(step: int) -> None:
        device = world.learner.device
        assert device is not None
        device.is_the_samplers(world.sampler)
        if step in (2, 4):
            assert world.checkpoints.copied[-1] == step

    world.on_evaluate = evaluated
    await world.run()
    assert [s.state.step for s in world.checkpoints.saved] == [2, 4, 5]
    assert [step for step, _ in world.evaluated] == [2, 4, 5]


async def test_a_save_that_waits_for_a_slow_upload_before_it_is_no_stalled_training() -> None:
    world = World(stage_config(2, every=1, **COLOCATED))
    may_copy, original = asyncio.Event(), world.checkpoints.copy

    async def copy(step: int) -> None:
        await may_copy.wait()
        await original(step)

    world.checkpoints.copy = copy
    running = asyncio.create_task(world.run())
    await until(lambda: bool(world.learner.trained))
    for _ in range(20):
        await asyncio.sleep(0)
    assert world.notes.phases[-1:] == [TrainerPhase.CHECKPOINTING], "in which every report is a sign of life"
    may_copy.set()
    await running
    assert TrainerPhase.TRAINING in world.notes.phases


@pytest.mark.parametrize("turns", range(0, 160, 4))
async def test_a_stop_at_any_moment_saves_what_is_trained_and_the_next_run_goes_on(turns: int) -> None:
    config = stage_config(3, every=2, evaluate=EVALUATE, **COLOCATED)
    world = World(config)
    running = asyncio.create_task(world.run())
    for _ in range(turns):
        await asyncio.sleep(0)
    world.stop.request(60, "test")
    ending = await running
    saved = world.checkpoints.saved
    assert ending.step == (saved[-1].state.step if saved else 0)
    assert len(world.learner.trained) == ending.step
    if saved and not saved[-1].final:
        await finished_as_one(config, saved[-1], world)


async def test_a_save_that_has_to_be_made_once_more_at_the_end_finds_the_learner_there() -> None:
    world = World(stage_config(2, every=1, **COLOCATED))
    world.checkpoints.failing = 1
    world.checkpoints.failed = False
    original = world.checkpoints.commit

    async def commit(state: Any, **rest: Any) -> None:
        world.checkpoints.failing = 1 if state.step == 2 and world.checkpoints.copied.count(2) == 1 else 0
        await original(state, **rest)

    world.checkpoints.commit = commit
    ending = await world.run()
    assert ending.step == 2
    assert world.checkpoints.saved[-1].final
    assert world.checkpoints.copied.count(2) == 2


async def test_a_failed_rollout_leaves_the_device_to_the_learner_and_is_saved() -> None:
    async def reward(problem: Any, response: str, key: str) -> Any:
        raise RuntimeError("no such judge")

    world = World(stage_config(3, every=10, **COLOCATED), reward=reward)
    with pytest.raises(RuntimeError, match="no such judge"):
        await world.run()
    device = world.learner.device
    assert device is not None
    device.is_the_learners()


async def test_a_stop_during_a_push_waits_for_nothing_and_nothing_is_lost() -> None:
    world = World(stage_config(3, every=1, **COLOCATED))
    await_push = asyncio.Event()
    await_push.set()
    world.sampler.hold_push = await_push

    def held(step: int) -> None:
        if step == 2:
            await_push.clear()

    world.learner.on_train = held
    running = asyncio.create_task(world.run())
    await until(lambda: len(world.learner.trained) == 2)
    world.stop.request(60, "test")
    ending = await running
    assert (ending.step, ending.drained) == (2, True)
    assert world.checkpoints.saved[-1].state.step == 2
    assert trained(world) == list(range(6))
