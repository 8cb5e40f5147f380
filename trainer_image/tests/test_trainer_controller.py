"""The training loop: order, resume, gates, evaluation, a lost sampler. How it stops is tested beside this."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from unittest.mock import AsyncMock, Mock

import pytest
from controller_world import PROMPTS, Saved, World, stage_config, trained

from deepcoder_trainer.checkpoint.reader import ResumePoint
from deepcoder_trainer.errors import LearnerLost, SamplerLost
from deepcoder_trainer.running.startup import bring_to
from deepcoder_trainer.types import Finish, Generation, GenerationRequest, Outcome, Problem


@pytest.mark.parametrize("eta", [0, 1, 2])
async def test_strict_batches_are_sampled_with_the_weights_their_step_says(eta: int) -> None:
    world = World(stage_config(6, eta=eta), turns=5)
    ending = await world.run()
    assert (ending.step, ending.drained) == (6, False)
    for batch in world.learner.trained:
        versions = {v.version for s in batch.samples for v in s.generation.versions}
        assert versions == {max(0, batch.step - 1 - eta)}
        assert [g.group_id for g in batch.groups] == list(range((batch.step - 1) * PROMPTS, batch.step * PROMPTS))
    assert world.sampler.pushed == list(range(7))


async def test_no_two_samples_of_a_run_are_the_same() -> None:
    world = World(stage_config(6))
    await world.run()
    texts = [s.generation.text for b in world.learner.trained for s in b.samples]
    assert len(set(texts)) == len(texts), "an exchange of two samples would not be seen"


@pytest.mark.parametrize("eta", [0, 1, 2])
@pytest.mark.parametrize("killed_after", [1, 3, 4])
@pytest.mark.parametrize("deterministic", [False, True])
async def test_a_killed_strict_run_resumes_to_the_same_weights(
    eta: int, killed_after: int, deterministic: bool
) -> None:
    config = stage_config(6, every=1, eta=eta, recipe={"deterministic": deterministic})
    whole = World(config, turns=1)
    await whole.run()

    killed = World(config, turns=2)
    task = asyncio.create_task(killed.run())
    while len(killed.checkpoints.saved) < killed_after:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    again = World(config, resume=killed.checkpoints.saved[-1], turns=3)
    await again.run()
    assert again.sampler.pushed[0] == killed.checkpoints.saved[-1].state.version, "weights before the first admission"
    assert again.learner.weights == whole.learner.weights
    assert again.checkpoints.saved[-1].state.history == whole.checkpoints.saved[-1].state.history


async def test_the_gate_ends_the_stage_and_its_verdict_is_saved() -> None:
    gate = {"all": [{"metric": "step", "op": "Ge", "value": 3}]}
    world = World(stage_config(6, promoteWhen=gate))
    ending = await world.run()
    assert ending.step == 3
    assert ending.gate is not None
    assert ending.gate.met
    last = world.checkpoints.saved[-1]
    assert (last.final, last.gate) == (True, ending.gate)


async def test_a_gate_that_is_not_met_by_the_last_step_is_saved_as_unmet() -> None:
    gate = {"all": [{"metric": "reward_mean", "op": "Gt", "value": 1}]}
    world = World(stage_config(2, promoteWhen=gate))
    ending = await world.run()
    assert (ending.step, ending.gate.met if ending.gate else None) == (2, False)
    assert world.checkpoints.saved[-1].final


async def test_evaluation_sees_the_weights_of_its_step_and_feeds_the_gate() -> None:
    world = World(
        stage_config(
            6,
            evaluate={"datasets": [{"name": "held", "uri": "/h"}], "everySteps": 2},
            promoteWhen={"all": [{"metric": "eval/held/pass_at_1", "op": "Ge", "value": 0.4}]},
        )
    )
    ending = await world.run()
    assert world.evaluated == [(2, 2), (4, 4)]
    assert ending.step == 4
    assert world.notes.steps[1].metrics["eval/held/pass_at_1"] == 0.2


async def test_a_lost_sampler_ends_the_loop_with_its_error_and_hangs_nobody() -> None:
    world = World(stage_config(6))
    world.sampler.fail_after = 9
    with pytest.raises(SamplerLost):
        await world.run()


@pytest.mark.parametrize("order", ["Strict", "Window"])
@pytest.mark.parametrize("batches", [(PROMPTS, PROMPTS, PROMPTS), (PROMPTS, 1, 2 * PROMPTS), (1, 2 * PROMPTS, PROMPTS)])
async def test_a_next_stage_goes_on_in_the_order_of_problems_whatever_its_batch_and_its_deaths(
    batches: tuple[int, ...], order: str
) -> None:
    def dies(step: int) -> None:
        if step == 3:
            raise LearnerLost("its node is gone")

    saved: Saved | None = None
    worlds = []
    for batch in batches:
        config = stage_config(3, order=order, recipe={"promptsPerStep": batch})
        if saved is not None:
            before = ResumePoint(Mock(), Mock(), saved.state, "there", own=False)
            saved = replace(saved, state=await bring_to(before, AsyncMock(), config))
        killed = World(config, resume=saved, turns=len(worlds))
        killed.learner.on_train = dies
        with pytest.raises(LearnerLost):
            await killed.run()
        again = World(config, resume=killed.checkpoints.saved[-1], turns=len(worlds))
        await again.run()
        worlds += [killed, again]
        saved = again.checkpoints.saved[-1]
    assert trained(*worlds) == list(range(3 * sum(batches)))
    sizes = [len(b.groups) for w in worlds for b in w.learner.trained]
    assert sizes == [batch for batch in batches for _ in range(3)]
    assert [v for w in worlds for v in w.sampler.pushed] == [0, 1, 2, 2, 3, 3, 4, 5, 5, 6, 6, 7, 8, 8, 9]
    assert saved is not None
    assert saved.state.trained_groups == 3 * sum(batches)


async def test_a_collapse_is_said_once_a_step(caplog: pytest.LogCaptureFixture) -> None:
    async def never(problem: Problem, response: str, key: str) -> Outcome:
        return Outcome(0.0, "no_code", 0.0)

    world = World(stage_config(1), reward=never)
    original = world.sampler.generate

    async def cut(request: GenerationRequest) -> Generation:
        g = await original(request)
        return Generation(g.output_ids, g.logprobs, Finish.LENGTH, g.text, g.versions)

    world.sampler.generate = cut  # type: ignore[method-assign]
    await world.run()
    assert world.notes.steps[0].metrics["collapsing"] == 1.0
    assert "does not recover by itself" in caplog.text


async def test_a_step_is_told_before_it_is_saved() -> None:
    world = World(stage_config(4, every=1))
    told: list[int] = []
    original = world.checkpoints.commit

    async def commit(state, **rest) -> None:
        told.append(len(world.notes.steps) - state.step)
        await original(state, **rest)

    world.checkpoints.commit = commit  # type: ignore[method-assign]
    await world.run()
    assert told == [0, 0, 0, 0]


async def test_a_gate_that_is_met_early_has_the_evaluation_at_the_end_and_saves_its_figures() -> None:
    gate = {"all": [{"metric": "step", "op": "Ge", "value": 3}]}
    world = World(
        stage_config(6, promoteWhen=gate, evaluate={"datasets": [{"name": "held", "uri": "/h"}], "everySteps": 2})
    )
    ending = await world.run()
    assert ending.step == 3
    assert world.evaluated == [(2, 2), (3, 3)]
    last = world.checkpoints.saved[-1]
    assert (last.final, last.metrics["eval/held/pass_at_1"]) == (True, 0.3)


async def test_a_gate_that_the_evaluation_at_the_end_undoes_lets_the_stage_go_on() -> None:
    conditions = [
        {"metric": "step", "op": "Ge", "value": 3},
        {"metric": "eval/held/pass_at_1", "op": "Ge", "value": 0.5},
    ]
    world = World(
        stage_config(
            6,
            every=100,
            promoteWhen={"all": conditions},
            evaluate={"datasets": [{"name": "held", "uri": "/h"}], "everySteps": 2},
        )
    )
    world.score = {2: 0.6, 3: 0.4, 4: 0.3, 6: 0.7}.__getitem__
    ending = await world.run()
    assert [step for step, _ in world.evaluated] == [2, 3, 4, 6]
    assert (ending.step, ending.gate.met if ending.gate else None) == (6, True)
    assert [(s.state.step, s.final) for s in world.checkpoints.saved] == [(3, False), (6, True)]


async def test_window_order_waits_for_no_tail_at_a_checkpoint() -> None:
    world = World(stage_config(6, every=2, order="Window"))
    world.sampler.holds = lambda group: group == 2 * PROMPTS + 1
    task = asyncio.create_task(world.run())
    async with asyncio.timeout(60):
        while not world.checkpoints.saved:
            await asyncio.sleep(0)
    assert 2 * PROMPTS + 1 in world.checkpoints.saved[0].state.pending
    world.sampler.hold.set()
    assert (await task).step == 6
    assert [s.state.step for s in world.checkpoints.saved] == [2, 4, 6]


async def test_totals_go_on_over_a_resume() -> None:
    first = World(stage_config(2, every=1))
    await first.run()
    saved = next(s for s in first.checkpoints.saved if s.state.step == 1)
    second = World(stage_config(2, every=1), resume=saved)
    await second.run()
    assert second.notes.steps[-1].metrics["run_samples"] == 2 * PROMPTS * 2
    assert second.notes.steps[-1].metrics == first.notes.steps[-1].metrics


async def test_nothing_is_admitted_while_the_gate_is_shut() -> None:
    world = World(stage_config(3))
    opened, asked = asyncio.Event(), 0

    async def gate() -> None:
        nonlocal asked
        asked += 1
        if asked == PROMPTS + 2:
            await opened.wait()

    world.gate = gate
    task = asyncio.create_task(world.run())
    for _ in range(200):
        await asyncio.sleep(0)
    assert (len(world.learner.trained), asked) == (1, PROMPTS + 2), "one of the second batch is in, the rest waits"
    opened.set()
    assert (await task).step == 3


async def test_a_wave_is_admitted_whole_and_the_gate_asked_between_waves_alone() -> None:
    world = World(stage_config(3, recipe={"deterministic": True}))
    asked: list[int] = []

    async def gate() -> None:
        asked.append(sum(len(held) for held in world.sampler.waves._held.values()))
        await asyncio.sleep(0)

    world.gate = gate
    assert (await world.run()).step == 3
    assert len(asked) == 3
    assert set(asked) == {0}, "no engine holds half a wave while the gate is asked"
