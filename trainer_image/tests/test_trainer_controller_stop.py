"""How the training loop stops: at every point of a step weights are saved first, and the resumed run goes on alike."""

from __future__ import annotations

import asyncio

import pytest
from controller_world import EVALUATE, PROMPTS, World, finished_as_one, scripted_reward, stage_config, trained, until
from virtual_time import in_virtual_time

from deepcoder_trainer.checkpoint.errors import CheckpointFailed
from deepcoder_trainer.errors import SamplerLost
from deepcoder_trainer.types import Outcome, Problem


@pytest.mark.parametrize(("eta", "order"), [(0, "Strict"), (1, "Strict"), (2, "Strict"), (1, "Window"), (2, "Window")])
@pytest.mark.parametrize("at", [1, 2, 4])
async def test_a_drained_run_saves_what_was_finished_and_goes_on_with_it(eta: int, order: str, at: int) -> None:
    config = stage_config(6, every=100, eta=eta, order=order)
    first = World(config, turns=at)
    first.learner.on_train = lambda step: first.stop.request(60, "test") if step == at else None
    ending = await first.run()
    assert (ending.step, ending.drained) == (at, True)
    [saved] = first.checkpoints.saved
    assert saved.state.step == at
    assert not saved.final
    assert [report.step for report in first.notes.steps] == list(range(1, at + 1)), "the last step is told too"

    if order == "Strict" and eta < 2:  # with 2, a batch may be sampled with fresher weights than without the drain
        await finished_as_one(config, saved, first)
        return
    second = World(config, resume=saved, turns=at + 1)
    ending = await second.run()
    assert (ending.step, ending.drained) == (6, False)
    assert trained(first, second) == list(range(6 * PROMPTS)), "nothing lost, nothing trained twice"


@in_virtual_time
async def test_a_drain_that_runs_out_of_time_leaves_without_waiting_for_rollouts() -> None:
    world = World(stage_config(6, eta=1))
    world.sampler.holds = lambda _group: True
    task = asyncio.create_task(world.run())
    await until(lambda: world.sampler.version >= 0)
    world.stop.request(0.05, "test")
    ending = await task
    assert (ending.step, ending.drained) == (0, True)
    assert world.checkpoints.saved == [], "nothing was trained, nothing is saved"


@in_virtual_time
async def test_what_was_trained_is_saved_though_the_next_batch_is_sampled_for_longer_than_there_is_time() -> None:
    config = stage_config(6, every=100)
    world = World(config)
    world.sampler.holds = lambda group: group >= 2 * PROMPTS
    task = asyncio.create_task(world.run())
    await until(lambda: len(world.learner.trained) == 2)
    for _ in range(50):
        await asyncio.sleep(0)
    world.stop.request(0.4, "test")
    ending = await task
    assert (ending.step, ending.drained) == (2, True)
    [saved] = world.checkpoints.saved
    assert (saved.state.step, saved.weights) == (2, world.learner.weights)
    second = World(config, resume=saved, turns=4)
    await second.run()
    assert trained(world, second) == list(range(6 * PROMPTS))


async def test_weights_are_on_their_way_while_rollouts_settle() -> None:
    world = World(stage_config(6, every=100, order="Window"))

    world.sampler.holds = lambda group: group >= 2 * PROMPTS
    world.learner.on_train = lambda step: world.stop.request(60, "test") if step == 2 else None
    task = asyncio.create_task(world.run())
    await until(lambda: world.checkpoints.copied == [2])
    assert world.checkpoints.saved == []
    assert world.sampler.held > 0
    world.sampler.hold.set()
    assert (await task).step == 2
    assert world.checkpoints.saved[-1].state.pending == (), "and those that had the time are kept"


async def test_a_stop_while_weights_go_out_saves_them_and_waits_for_no_sampler() -> None:
    config = stage_config(6, every=100)
    world = World(config)

    def hold(step: int) -> None:
        if step == 3:
            world.sampler.hold_push = asyncio.Event()

    world.learner.on_train = hold
    task = asyncio.create_task(world.run())
    await until(lambda: len(world.learner.trained) == 3)
    for _ in range(50):
        await asyncio.sleep(0)
    world.stop.request(60, "test")
    assert (await task).step == 3
    await finished_as_one(config, world.checkpoints.saved[-1], world)


async def test_no_step_waits_for_the_verdicts_that_a_checkpoint_holds() -> None:
    config = stage_config(6, every=2, eta=2)
    verdicts = asyncio.Event()
    before = World(config)
    await before.run()

    async def slow(problem: Problem, response: str, key: str) -> Outcome:
        if int(key.split("/")[1]) == 4 * PROMPTS - 1:  # of batch 4, which the checkpoint of step 2 holds
            await verdicts.wait()
        return await scripted_reward(problem, response, key)

    world = World(config, reward=slow)
    task = asyncio.create_task(world.run())
    await until(lambda: len(world.learner.trained) == 3)
    assert (world.checkpoints.copied, world.checkpoints.saved) == ([2], []), "step 3 is trained meanwhile"
    verdicts.set()
    await until(lambda: world.checkpoints.saved != [])
    saved = world.checkpoints.saved[0]
    task.cancel()
    assert [g.group_id for g in saved.state.groups] == list(range(2 * PROMPTS, 4 * PROMPTS))
    assert (saved.state.step, saved.state.pending) == (2, ())
    assert saved.metrics == before.checkpoints.saved[0].metrics, "of its own step"
    again = World(config, resume=saved, turns=4)
    await again.run()
    assert again.learner.weights == before.learner.weights


@pytest.mark.parametrize("fails", [False, True])
async def test_the_next_save_waits_for_the_promised_commit_and_leaves_it_its_weights(fails: bool) -> None:
    verdicts = asyncio.Event()

    async def slow(problem: Problem, response: str, key: str) -> Outcome:
        if int(key.split("/")[1]) == 3 * PROMPTS - 1:  # of batch 3, which the checkpoint of step 1 holds
            await verdicts.wait()
            if fails:
                raise KeyError("no reward")
        return await scripted_reward(problem, response, key)

    world = World(stage_config(4, every=1, eta=2), reward=slow)
    task = asyncio.create_task(world.run())
    await until(lambda: len(world.learner.trained) == 2)
    for _ in range(100):
        await asyncio.sleep(0)
    assert (world.checkpoints.copied, world.checkpoints.saved) == ([1], [])
    verdicts.set()
    [failure] = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(failure, KeyError) is fails
    steps = [1, 2] if fails else [1, 2, 3, 4]
    assert ([s.state.step for s in world.checkpoints.saved], world.checkpoints.copied) == (steps, steps)


@pytest.mark.parametrize("seconds", [60, 0.4])
@in_virtual_time
async def test_a_promised_commit_is_made_good_with_what_there_is_when_newer_weights_leave(seconds: float) -> None:
    verdicts = asyncio.Event()

    async def slow(problem: Problem, response: str, key: str) -> Outcome:
        if int(key.split("/")[1]) == 4 * PROMPTS - 1:
            await verdicts.wait()
        return await scripted_reward(problem, response, key)

    world = World(stage_config(6, every=2, eta=2), reward=slow)
    task = asyncio.create_task(world.run())
    await until(lambda: len(world.learner.trained) == 3)
    world.stop.request(seconds, "test")
    await until(lambda: world.checkpoints.copied == [2, 3])
    if seconds == 60:
        verdicts.set()
    assert (await task).step == 3
    assert [s.state.step for s in world.checkpoints.saved] == [2, 3]
    assert [s.state.pending for s in world.checkpoints.saved] == [(11,), () if seconds == 60 else (11,)]


@pytest.mark.parametrize("seconds", [60, 0.4])
@in_virtual_time
async def test_a_stop_while_a_checkpoint_waits_for_verdicts_commits_what_was_copied_aside(seconds: float) -> None:
    config = stage_config(6, every=1)
    verdicts = asyncio.Event()
    waiting: list[str] = []

    async def slow(problem: Problem, response: str, key: str) -> Outcome:
        if int(key.split("/")[1]) >= PROMPTS:
            waiting.append(key)
            await verdicts.wait()
        return await scripted_reward(problem, response, key)

    world = World(config, reward=slow)
    task = asyncio.create_task(world.run())
    await until(lambda: world.checkpoints.copied == [1] and len(waiting) >= 2 * PROMPTS)
    world.stop.request(seconds, "test")
    if seconds == 60:
        for _ in range(20):
            await asyncio.sleep(0)
        verdicts.set()
    assert (await task).step == 1
    assert world.checkpoints.copied == [1]
    [saved] = world.checkpoints.saved
    if seconds == 60:
        await finished_as_one(config, saved, world)
    else:
        assert saved.state.pending == (3, 4, 5), "cut off, and sampled anew"


@pytest.mark.parametrize("every", [1, 2, 100])
@pytest.mark.parametrize("cause", ["drain", "sampler"])
@in_virtual_time
async def test_a_deterministic_run_whose_work_is_cut_off_goes_on_as_if_it_had_not_been(every: int, cause: str) -> None:
    """Sampled again, that work would have newer weights and smaller waves."""
    config = stage_config(6, every=every, recipe={"deterministic": True})
    whole = World(config, turns=12)
    await whole.run()
    first = World(config)
    cut = 5 * PROMPTS - 1
    first.sampler.holds = lambda group: group == cut
    task = asyncio.create_task(first.run())
    await until(lambda: len(first.learner.trained) == 4 and first.sampler.held > 0)
    if cause == "drain":
        first.stop.request(0.4, "test")
        ending = await task
        assert (ending.step, ending.drained) == (first.checkpoints.saved[-1].state.step if every < 100 else 0, True)
    else:
        first.sampler.lost = True
        first.sampler.hold.set()
        [failure] = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(failure, SamplerLost)
    assert first.checkpoints.forgotten[-1] == 4
    saved = first.checkpoints.saved[-1] if every < 100 else None
    assert saved is None or saved.state.step < 4
    second = World(config, resume=saved, turns=3)
    await second.run()
    assert second.learner.weights == whole.learner.weights


async def test_a_second_wish_with_less_time_ends_the_wait_of_the_first() -> None:
    world = World(stage_config(6, every=100))
    world.sampler.holds = lambda group: group >= 2 * PROMPTS
    task = asyncio.create_task(world.run())
    await until(lambda: len(world.learner.trained) == 2)
    world.stop.request(3600, "operator")
    await until(lambda: world.checkpoints.copied == [2])
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    world.stop.request(0, "SIGTERM")
    assert (await task).drained


async def test_a_second_wish_ends_an_upload_that_takes_too_long() -> None:
    world = World(stage_config(6, every=100))
    world.learner.on_train = lambda step: world.stop.request(3600, "operator") if step == 2 else None
    world.checkpoints.uploaded.clear()
    task = asyncio.create_task(world.run())
    await until(lambda: world.checkpoints.saved != [])
    assert not task.done()
    world.stop.request(0, "SIGTERM")
    assert (await task).drained


async def test_a_stop_during_an_evaluation_saves_the_step_and_the_resumed_run_evaluates_it() -> None:
    config = stage_config(6, every=100, evaluate=EVALUATE)
    first = World(config)

    async def stop(step: int) -> None:
        if step == 4:
            first.stop.request(60, "test")
            await asyncio.Event().wait()

    first.on_evaluate = stop
    ending = await first.run()
    assert (ending.step, ending.drained) == (4, True)
    [saved] = first.checkpoints.saved
    assert (saved.state.step, saved.weights) == (4, first.learner.weights)
    assert saved.state.history["eval/held/pass_at_1"] == (0.2,)
    await finished_as_one(config, saved, first)
    again = World(config, resume=saved)
    await again.run()
    assert [step for step, _ in again.evaluated] == [4, 6]
    assert again.evaluated[0] == (4, 4), "with the weights of its step"


async def test_a_stop_in_the_last_step_leaves_its_evaluation_to_the_resumed_run_which_ends_the_stage() -> None:
    gate = {"all": [{"metric": "eval/held/pass_at_1", "op": "Ge", "value": 0.4}], "otherwise": "Fail"}
    config = stage_config(4, every=100, evaluate={"datasets": EVALUATE["datasets"]}, promoteWhen=gate)
    first = World(config)
    first.learner.on_train = lambda step: first.stop.request(60, "test") if step == 4 else None
    ending = await first.run()
    assert (ending.step, ending.drained) == (4, True)
    [saved] = first.checkpoints.saved
    assert (saved.final, saved.gate) == (False, None), "a gate is not judged before the evaluation it looks at"

    second = World(config, resume=saved)
    ending = await second.run()
    assert (ending.step, ending.drained) == (4, False)
    assert second.learner.trained == []
    assert second.evaluated == [(4, 4)]
    last = second.checkpoints.saved[-1]
    assert last.final
    assert last.gate is not None
    assert last.gate.met
    assert last.gate.values == {"eval/held/pass_at_1": 0.4}
    assert last.metrics["loss"] == 0.5, "the step's own figures are still there"
    [report] = second.notes.steps
    assert (report.step, report.groups) == (4, ())
    assert report.metrics["eval/held/pass_at_1"] == 0.4


async def test_a_stop_in_the_last_step_of_a_stage_without_evaluation_ends_the_stage() -> None:
    world = World(stage_config(3, every=100))
    world.learner.on_train = lambda step: world.stop.request(60, "test") if step == 3 else None
    ending = await world.run()
    assert (ending.step, ending.drained) == (3, False)
    assert [s.final for s in world.checkpoints.saved] == [True]


async def test_a_drain_saves_again_what_a_save_in_the_background_failed_to() -> None:
    world = World(stage_config(6, every=2, eta=0))
    world.checkpoints.failing = 1
    world.sampler.holds = lambda group: group >= 2 * PROMPTS
    task = asyncio.create_task(world.run())
    await until(lambda: world.checkpoints.failed and world.sampler.held > 0)
    world.stop.request(60, "test")
    ending = await task
    assert (ending.step, ending.drained) == (2, True)
    assert [s.state.step for s in world.checkpoints.saved] == [2]


@in_virtual_time
async def test_a_failed_save_that_a_deterministic_run_cannot_make_again_is_its_failure() -> None:
    """It would tell of a step that no checkpoint has."""
    world = World(stage_config(6, every=2, recipe={"deterministic": True}))
    world.checkpoints.failing = 1
    world.sampler.holds = lambda group: group >= 3 * PROMPTS
    task = asyncio.create_task(world.run())
    await until(lambda: len(world.learner.trained) == 3 and world.checkpoints.failed)
    world.stop.request(0.4, "test")
    with pytest.raises(CheckpointFailed):
        await task
    assert world.checkpoints.saved == []


async def test_a_save_that_fails_twice_is_the_runs_failure() -> None:
    world = World(stage_config(2, every=100))
    world.checkpoints.failing = 2
    with pytest.raises(CheckpointFailed):
        await world.run()


async def test_a_stop_before_weights_are_out_leaves_at_once() -> None:
    world = World(stage_config(6))
    world.sampler.hold_push = asyncio.Event()
    task = asyncio.create_task(world.run())
    for _ in range(10):
        await asyncio.sleep(0)
    world.stop.request(60, "test")
    ending = await task
    assert (ending.step, ending.drained) == (0, True)
    assert world.checkpoints.copied == []
