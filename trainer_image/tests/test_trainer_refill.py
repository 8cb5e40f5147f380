"""Groups that would teach nothing are drawn anew: bounded, by ids alone, and the same way again after a resume."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from controller_world import GROUP, PROBLEMS, PROMPTS, World, scripted_reward, stage_config, until

from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint.state import PipelineState, load_state, save_state
from deepcoder_trainer.pipeline.refill import drawn_problem, teaches_nothing
from deepcoder_trainer.types import Group, Outcome, Problem

LIMIT = 2


def config(steps: int = 6, *, limit: int = LIMIT, eta: int = 1, order: str = "Strict", every: int = 2) -> StageConfig:
    return stage_config(steps, eta=eta, order=order, every=every, recipe={"refill": True, "refillLimit": limit})


def noted(world: World) -> list[str]:
    """Names of all requests, in the order in which they come."""
    asked: list[str] = []
    generate = world.sampler.generate

    async def note(request):
        asked.append(request.request_id)
        return await generate(request)

    world.sampler.generate = note
    return asked


async def trained_groups(world: World) -> list[Group]:
    await world.run()
    return [g for b in world.learner.trained for g in b.groups]


@pytest.mark.parametrize(("eta", "order"), [(0, "Strict"), (1, "Strict"), (2, "Strict"), (1, "Window")])
async def test_what_teaches_nothing_is_drawn_anew_until_the_limit_and_no_two_draws_share_a_name(
    eta: int, order: str
) -> None:
    world = World(config(eta=eta, order=order))
    asked = noted(world)
    groups = await trained_groups(world)
    assert sorted(g.group_id for g in groups) == list(range(6 * PROMPTS))
    assert max(Counter(asked).values()) == 1
    assert max(g.draw for g in groups) == LIMIT
    assert all(g.draw == LIMIT for g in groups if teaches_nothing(g)), "what is left would teach nothing either"
    dropped = [g for report in world.notes.steps for g in report.dropped]
    assert all(teaches_nothing(g) for g in dropped)
    assert len(dropped) == sum(g.draw for g in groups)
    assert world.notes.steps[-1].metrics["run_groups_dropped"] == len(dropped)
    assert len(asked) == GROUP * (len(groups) + len(dropped))


async def test_each_dropped_draw_is_told_at_once_and_again_with_the_next_step() -> None:
    world = World(config())
    await world.run()
    reported = [group for step in world.notes.steps for group in step.dropped]
    assert reported
    assert world.dropped[: len(reported)] == reported, "what is dropped after the last report is told all the same"
    places = [(group.group_id, group.draw) for group in world.dropped]
    assert len(set(places)) == len(places)


async def test_without_refill_groups_with_equal_rewards_stay() -> None:
    groups = await trained_groups(World(stage_config(6)))
    assert any(teaches_nothing(g) for g in groups)
    assert {g.draw for g in groups} == {0}


@pytest.mark.parametrize("eta", [0, 1, 2])
async def test_all_draws_of_a_strict_batch_are_sampled_with_its_own_version(eta: int) -> None:
    world = World(config(eta=eta), turns=7)
    await world.run()
    for batch in world.learner.trained:
        versions = {v.version for s in batch.samples for v in s.generation.versions}
        assert versions == {max(0, batch.step - 1 - eta)}


async def test_each_draw_is_another_problem_and_says_which() -> None:
    def problem(group: Group) -> str:
        return PROBLEMS[drawn_problem(3, group.group_id, group.draw, LIMIT, len(PROBLEMS))].problem.id

    groups = await trained_groups(World(config()))
    assert all(g.problem_id == problem(g) for g in groups)
    draws = [drawn_problem(3, 5, draw, 50, 1000) for draw in range(51)]
    assert len(set(draws[1:])) == 50


def test_a_sample_that_no_judge_could_judge_keeps_its_group() -> None:
    def group(*rewards: float | None) -> Group:
        world = World(config(1))
        asyncio.run(world.run())
        first = world.learner.trained[0].groups[0]
        samples = tuple(replace(first.samples[0], outcome=Outcome(r, "x", 0.0)) for r in rewards)
        return replace(first, samples=samples)

    assert [teaches_nothing(group(*r)) for r in ((1, 1), (0, 0), (1, 0), (1, None), (None, None))] == [
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize("eta", [0, 1])
async def test_a_run_that_is_stopped_amid_a_refill_goes_the_same_way_again(eta: int) -> None:
    whole = World(config(eta=eta))
    await whole.run()
    first = World(config(eta=eta), turns=2)
    asked = noted(first)

    def stop() -> bool:
        return any("." in name for name in asked) and len(first.learner.trained) >= 2

    task = asyncio.create_task(first.run())
    await until(stop)
    first.stop.request(60, "test")
    assert (await task).drained
    saved = first.checkpoints.saved[-1]
    again = World(config(eta=eta), resume=saved, turns=3)
    await again.run()
    assert again.learner.weights == whole.learner.weights
    assert again.notes.steps[-1].metrics["run_groups_dropped"] == whole.notes.steps[-1].metrics["run_groups_dropped"]


async def test_a_refilled_group_that_was_stored_unjudged_is_judged_again_by_its_own_tests() -> None:
    down = True

    async def reward(problem: Problem, response: str, key: str) -> Outcome:
        if down and key.startswith("sampling/5.1/"):
            return Outcome(None, "error", 0.0, 3)
        if "." not in key:
            return Outcome(1.0, "passed", 0.0)  # every first draw is dropped
        asked.append((key, problem.id))
        return await scripted_reward(problem, response, key)

    asked: list[tuple[str, str]] = []
    first = World(config(), reward=reward)
    with pytest.raises(RuntimeError, match="judges failed"):
        await first.run()
    saved = first.checkpoints.saved[-1]
    [unjudged] = [g for g in saved.state.groups if any(s.outcome.reward is None for s in g.samples)]
    assert (unjudged.group_id, unjudged.draw) == (5, 1)
    down = False
    asked.clear()
    second = World(config(), resume=saved, reward=reward)
    await second.run()
    assert ("sampling/5.1/0", unjudged.problem_id) in asked


def test_the_draw_is_part_of_a_checkpoint_and_of_none_that_is_older(tmp_path: Path) -> None:
    group = Group(4, "p", 1, (), draw=2)
    state = PipelineState(1, 1, 1, 9, groups=(group,))
    save_state(state, tmp_path)
    assert load_state(tmp_path).groups == (group,)
    path = tmp_path / "state.json"
    path.write_text(path.read_text().replace('"draw": 2, ', ""))
    assert load_state(tmp_path).groups[0].draw == 0
