"""How the training loop stops: at every point of a step weights are saved first, and the resumed run goes on alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from controller_world import PROMPTS, Saved, World, scripted_reward, stage_config

from deepcoder_trainer import controller
from deepcoder_trainer.checkpoint.errors import CheckpointFailed, StorageUnavailable
from deepcoder_trainer.ports import SandboxUnavailable
from deepcoder_trainer.types import LearnerLost, Outcome, Problem, SamplerLost

EVALUATE = {"datasets": [{"name": "held", "uri": "/h"}], "everySteps": 2}


def trained(*worlds: World) -> list[int]:
    return sorted(g.group_id for w in worlds for b in w.learner.trained for g in b.groups)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


def failing(*group_ids: int):
    """A reward whose judges fail on these groups."""

    async def reward(problem: Problem, response: str, key: str) -> Outcome:
        if int(key.split("/")[1]) in group_ids:
            return Outcome(None, "error", 0.0, 3)
        return await scripted_reward(problem, response, key)

    return reward


async def finished_as_one(config, saved: Saved, *firsts: World) -> None:
    """The resumed run ends as one that was never stopped, bit for bit."""
    second = World(config, resume=saved, turns=11)
    ending = await second.run()
    assert (ending.step, ending.drained) == (config.stage.max_steps, False)
    assert trained(*firsts, second) == list(range(config.stage.max_steps * PROMPTS)), "nothing lost or trained twice"
    whole = World(config, turns=12)
    await whole.run()
    assert second.learner.weights == whole.learner.weights
    assert second.checkpoints.saved[-1].state.history == whole.checkpoints.saved[-1].state.history


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


async def test_a_drain_that_runs_out_of_time_leaves_without_waiting_for_rollouts() -> None:
    world = World(stage_config(6, eta=1))
    world.sampler.holds = lambda _group: True
    task = asyncio.create_task(world.run())
    await until(lambda: world.sampler.version >= 0)
    world.stop.request(0.05, "test")
    ending = await task
    assert (ending.step, ending.drained) == (0, True)
    assert world.checkpoints.saved == [], "nothing was trained, nothing is saved"


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


@pytest.mark.parametrize("seconds", [60, 0.4])
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


@pytest.mark.parametrize(
    "error", [SandboxUnavailable("no judges"), StorageUnavailable("no route"), SamplerLost("no sampler is left")]
)
async def test_an_evaluation_that_fails_costs_no_step(error: Exception) -> None:
    config = stage_config(6, every=100, evaluate=EVALUATE)
    first = World(config)

    async def fail(step: int) -> None:
        if step == 4:
            raise error

    first.on_evaluate = fail
    with pytest.raises(type(error), match=str(error)):
        await first.run()
    [saved] = first.checkpoints.saved
    assert saved.state.step == 4
    await finished_as_one(config, saved, first)


async def test_a_rollout_whose_judges_are_refused_to_it_costs_no_step() -> None:
    async def gone(problem: Problem, response: str, key: str) -> Outcome:
        if int(key.split("/")[1]) >= 3 * PROMPTS:
            raise SandboxUnavailable("no judges at all")
        return await scripted_reward(problem, response, key)

    first = World(stage_config(6, every=100), reward=gone)
    with pytest.raises(SandboxUnavailable, match="no judges at all"):
        await first.run()
    [saved] = first.checkpoints.saved
    assert saved.state.step >= 2
    second = World(stage_config(6, every=100), resume=saved)
    await second.run()
    assert trained(first, second) == list(range(6 * PROMPTS))


async def test_a_failed_rollout_costs_no_step() -> None:
    config = stage_config(6, every=100)
    first = World(config)
    first.sampler.holds = lambda group: group >= 3 * PROMPTS
    first.sampler.lost = True
    first.sampler.hold.set()
    with pytest.raises(SamplerLost):
        await first.run()
    [saved] = first.checkpoints.saved
    assert saved.state.step >= 2
    second = World(config, resume=saved)
    await second.run()
    assert trained(first, second) == list(range(6 * PROMPTS))


@pytest.mark.parametrize("error", [LearnerLost("a rank died"), RuntimeError("out of memory in the second half")])
async def test_weights_that_a_failed_step_has_left_half_trained_are_not_saved(error: Exception) -> None:
    world = World(stage_config(6, every=100))

    def fail(step: int) -> None:
        if step == 3:
            raise error

    world.learner.on_train = fail
    with pytest.raises(type(error), match=str(error)):
        await world.run()
    assert world.checkpoints.copied == []


async def test_learners_that_are_lost_are_asked_for_nothing_more() -> None:
    world = World(stage_config(6, every=100))

    async def export() -> None:
        raise LearnerLost("a rank died")

    world.learner.on_train = lambda step: setattr(world.learner, "export_weights", export)
    with pytest.raises(LearnerLost):
        await world.run()
    assert world.checkpoints.copied == []


async def test_a_save_that_fails_while_a_failed_run_leaves_does_not_hide_why_it_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(stage_config(6, every=100, evaluate=EVALUATE))
    world.checkpoints.failing = 2

    async def fail(step: int) -> None:
        raise SamplerLost("no sampler is left")

    world.on_evaluate = fail
    with pytest.raises(SamplerLost, match="no sampler is left"):
        await world.run()
    assert "no route to storage" in caplog.text


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


@pytest.mark.parametrize("every", [1, 100])
async def test_too_many_failed_judges_end_the_run_after_saving_and_only_judging_is_done_again(every: int) -> None:
    config = stage_config(6, every=every)
    first = World(config, reward=failing(2 * PROMPTS))
    with pytest.raises(SandboxUnavailable, match="2 of 6 programs of step 3"):
        await first.run()
    saved = first.checkpoints.saved[-1]
    assert saved.state.step == 2
    assert saved.state.pending == ()
    [batch] = first.unjudged
    assert (batch.step, [g.group_id for g in batch.groups]) == (3, [6, 7, 8]), "it is stored all the same"
    await finished_as_one(config, saved, first)


async def test_a_batch_that_was_stored_unjudged_ends_the_run_again_while_judges_are_still_down() -> None:
    config = stage_config(6, every=1)
    down = failing(2 * PROMPTS)
    first = World(config, reward=down)
    with pytest.raises(SandboxUnavailable):
        await first.run()
    saved = first.checkpoints.saved[-1]
    second = World(config, resume=saved, reward=down)
    with pytest.raises(SandboxUnavailable):
        await second.run()
    assert second.checkpoints.saved == [], "there is nothing new to save"
    await finished_as_one(config, saved, first)


async def test_a_sample_that_is_quarantined_within_bounds_stays_so_after_a_resume(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(controller, "QUARANTINE_RATIO", 0.5)
    config = stage_config(4, every=1)
    whole = World(config, reward=failing(2 * PROMPTS))
    await whole.run()
    at_two = next(s for s in whole.checkpoints.saved if s.state.step == 2)
    again = World(config, resume=at_two, turns=3)
    await again.run()
    assert again.learner.weights == whole.learner.weights


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


async def test_a_save_that_fails_twice_is_the_runs_failure() -> None:
    world = World(stage_config(2, every=100))
    world.checkpoints.failing = 2
    with pytest.raises(CheckpointFailed):
        await world.run()


async def test_a_sampler_that_is_lost_while_the_run_leaves_costs_no_step() -> None:
    world = World(stage_config(6, every=100, order="Window"))
    world.sampler.holds = lambda group: group == 2 * PROMPTS
    world.sampler.lost = True
    world.learner.on_train = lambda step: world.stop.request(60, "test") if step == 2 else None
    task = asyncio.create_task(world.run())
    await until(lambda: world.checkpoints.copied == [2])
    world.sampler.hold.set()
    ending = await task
    assert (ending.step, ending.drained) == (2, True)
    assert 2 * PROMPTS in world.checkpoints.saved[-1].state.pending


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
