"""What the training loop does when a part of it fails: no trained step is lost that can be saved, and it says why."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from controller_world import (
    EVALUATE,
    GROUP,
    PROBLEMS,
    PROMPTS,
    ScriptedSampler,
    World,
    failing,
    finished_as_one,
    scripted_reward,
    stage_config,
    trained,
    until,
)

from deepcoder_trainer.checkpoint.errors import StorageUnavailable
from deepcoder_trainer.errors import LearnerLost, SamplerLost
from deepcoder_trainer.pipeline import groups
from deepcoder_trainer.pipeline.controller import NothingLearnt
from deepcoder_trainer.protocols import SandboxUnavailable
from deepcoder_trainer.rollout.rollout import Admitted, Rollout, Sampling
from deepcoder_trainer.types import Batch, Outcome, Problem


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


async def test_a_run_whose_gradients_are_finite_no_more_ends_and_says_so() -> None:
    """Before that many in a row a step may come to nothing: one that does not begins the count anew."""
    world = World(stage_config(40, every=100))
    train = world.learner.train
    good = {1, 2, 12}  # between the last two of them nine steps come to nothing

    async def without_gradient(batch: Batch) -> dict[str, float]:
        whole = world.config.recipe.optimizer_steps
        return {**await train(batch), "skipped_optimizer_steps": float(batch.step not in good) * whole}

    world.learner.train = without_gradient  # type: ignore[method-assign]
    with pytest.raises(NothingLearnt, match="the last 10 steps was finite, so the weights are those of step 12"):
        await world.run()
    assert world.learner.trained[-1].step == 22


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


@pytest.mark.parametrize("every", [1, 100])
async def test_too_many_failed_judges_end_the_run_after_saving_and_only_judging_is_done_again(every: int) -> None:
    config = stage_config(6, every=every)
    first = World(config, reward=failing(2 * PROMPTS))
    with pytest.raises(SandboxUnavailable, match=r"2 of 6 responses of step 3.* see the judges' logs; for"):
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
    monkeypatch.setattr(groups, "QUARANTINE_RATIO", 0.5)
    config = stage_config(4, every=1)
    whole = World(config, reward=failing(2 * PROMPTS))
    await whole.run()
    at_two = next(s for s in whole.checkpoints.saved if s.state.step == 2)
    again = World(config, resume=at_two, turns=3)
    await again.run()
    assert again.learner.weights == whole.learner.weights


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


async def test_of_a_group_only_what_no_judge_could_judge_is_judged_again() -> None:
    judged: list[str] = []

    async def reward(problem: Problem, response: str, key: str) -> Outcome:
        judged.append(key)
        return Outcome(1.0, "passed", 0.0)

    sampler = ScriptedSampler(random.Random(1), version=0)
    rollout = Rollout(sampler, reward, Sampling(3, GROUP, 8, 1.0))
    group = await rollout.group(Admitted(4, 0), PROBLEMS[0])
    unjudged = replace(group.samples[0], outcome=Outcome(None, "error", 0.0, 3))
    judged.clear()
    again = await rollout.judge_again(replace(group, samples=(unjudged, *group.samples[1:])), PROBLEMS[0])
    assert judged == ["sampling/4/0"]
    assert [s.outcome.reward for s in again.samples] == [1.0] * GROUP
