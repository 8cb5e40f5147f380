"""The training loop with a scripted sampler and learner at its edges: order, resume, drain, gates, quarantine.

The scripted learner's weights are a digest of everything it was trained on, and the scripted sampler answers from a
digest of its weights and the request's seed. So two runs end with the same weights only if every batch was the same,
sampled with the same weights, in the same order.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

from deepcoder_contracts.gate import GateRecord
from deepcoder_contracts.judge import TestCase
from deepcoder_contracts.progress import TrainerPhase
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint.state import PipelineState
from deepcoder_trainer.controller import Controller
from deepcoder_trainer.ports import Ending, SandboxUnavailable, StepReport
from deepcoder_trainer.problems.prompt import EncodedProblem
from deepcoder_trainer.rollout.rollout import Rollout, Sampling
from deepcoder_trainer.stopping import Stop
from deepcoder_trainer.types import (
    Batch,
    Finish,
    Generation,
    GenerationRequest,
    Outcome,
    Problem,
    SamplerLost,
    VersionSpan,
    WeightRefs,
)

GROUP = 2
PROMPTS = 3
PROBLEMS = [
    EncodedProblem(
        Problem(f"p{i}", "test", f"problem {i}", (TestCase(input="", output=str(i)),)), np.array([i, 7], np.int32)
    )
    for i in range(5)
]


def digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass
class ScriptedSampler:
    turns: random.Random
    weights: str = "none"
    version: int = -1
    pushed: list[int] = field(default_factory=list)
    fail_after: int | None = None
    hold: asyncio.Event | None = None

    async def generate(self, request: GenerationRequest) -> Generation:
        assert self.version >= 0, "asked before weights were pushed"
        weights, version = self.weights, self.version
        if self.fail_after is not None:
            self.fail_after -= 1
            if self.fail_after < 0:
                raise SamplerLost("gone")
        for _ in range(self.turns.randrange(12)):
            await asyncio.sleep(0)
        if self.hold is not None:
            await self.hold.wait()
        value = digest(weights, request.seed, request.prompt_ids.tolist())
        ids = np.frombuffer(bytes.fromhex(value)[:8], np.uint8).astype(np.int32)
        return Generation(ids, np.zeros(8, np.float32), Finish.STOP, value, (VersionSpan(version, 0, 8),))

    async def update_weights(self, refs: WeightRefs, version: int) -> None:
        self.weights, self.version = refs.dtype, version
        self.pushed.append(version)

    async def close(self) -> None: ...


@dataclass
class ScriptedLearner:
    weights: str = "start"
    trained: list[Batch] = field(default_factory=list)
    on_train: object = None

    async def train(self, batch: Batch) -> Mapping[str, float]:
        if callable(self.on_train):
            self.on_train(batch.step)
        await asyncio.sleep(0)
        self.trained.append(batch)
        content = [(s.group_id, s.index, s.generation.text, s.outcome.reward) for s in batch.samples]
        self.weights = digest(self.weights, batch.step, content)
        return {"loss": 0.5}

    async def export_weights(self) -> WeightRefs:
        return WeightRefs((), self.weights)


@dataclass
class Saved:
    state: PipelineState
    weights: str
    final: bool
    gate: GateRecord | None


@dataclass
class MemoryCheckpoints:
    learner: ScriptedLearner
    saved: list[Saved] = field(default_factory=list)

    async def save(self, state, *, metrics, final=False, gate=None) -> None:
        await asyncio.sleep(0)
        self.saved.append(Saved(state, self.learner.weights, final, gate))

    async def wait(self) -> None: ...


@dataclass
class Notes:
    steps: list[StepReport] = field(default_factory=list)

    def on_phase(self, phase: TrainerPhase) -> None: ...

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report)


async def scripted_reward(problem: Problem, response: str, key: str) -> Outcome:
    await asyncio.sleep(0)
    passed = int(response[:2], 16) % 2 == 0
    return Outcome(float(passed), "passed" if passed else "wrong_answer", 0.01)


def stage_config(steps: int, *, every: int = 2, eta: int = 1, order: str = "Strict", **stage: object) -> StageConfig:
    return StageConfig.model_validate(
        {
            "run": {"namespace": "ns", "name": "run", "uid": "01234567-89ab-cdef-0123-456789abcdef"},
            "stage": {
                "name": "s",
                "index": 0,
                "type": "Train",
                "contextTokens": 8,
                "maxSteps": steps,
                **stage,
            },
            "longestContextTokens": 8,
            "ordinal": 1,
            "model": {"uri": "/m"},
            "dataset": {"uri": "/d"},
            "recipe": {
                "promptsPerStep": PROMPTS,
                "groupSize": GROUP,
                "optimizerSteps": 1,
                "maxOffPolicy": eta,
                "order": order,
                "seed": 3,
            },
            "storage": {"uri": "file:///nowhere", "everySteps": every},
            "provenance": {"configDigest": "sha256:" + "0" * 64},
        }
    )


class World:
    """One attempt's parts, kept for looking at afterwards."""

    def __init__(self, config: StageConfig, *, resume: Saved | None = None, turns: int = 0, reward=scripted_reward):
        self.config = config
        self.sampler = ScriptedSampler(random.Random(turns))
        self.learner = ScriptedLearner(resume.weights if resume else "start")
        self.checkpoints = MemoryCheckpoints(self.learner)
        self.notes = Notes()
        self.stop = Stop()
        self.reward = reward
        self.state = resume.state if resume else PipelineState(0, 0, 0, 0)
        self.evaluated: list[tuple[int, int]] = []

    async def evaluate(self, step: int) -> Mapping[str, float]:
        self.evaluated.append((step, self.sampler.version))
        return {"eval/held/pass_at_1": step / 10}

    async def run(self) -> Ending:
        controller = Controller(
            config=self.config,
            problems=PROBLEMS,
            sampler=self.sampler,
            learner=self.learner,
            rollout=Rollout(self.sampler, self.reward, Sampling(3, GROUP, 8, 1.0)),
            checkpoints=self.checkpoints,
            observer=self.notes,
            stop=self.stop,
            state=self.state,
            evaluate=self.evaluate if self.config.stage.evaluate else None,
        )
        async with asyncio.timeout(20):
            return await controller.run()


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


@pytest.mark.parametrize("eta", [0, 1, 2])
@pytest.mark.parametrize("killed_after", [1, 3, 4])
async def test_a_killed_strict_run_resumes_to_the_same_weights(eta: int, killed_after: int) -> None:
    whole = World(stage_config(6, every=1, eta=eta), turns=1)
    await whole.run()

    killed = World(stage_config(6, every=1, eta=eta), turns=2)
    task = asyncio.create_task(killed.run())
    while len(killed.checkpoints.saved) < killed_after:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    again = World(stage_config(6, every=1, eta=eta), resume=killed.checkpoints.saved[-1], turns=3)
    await again.run()
    assert again.sampler.pushed[0] == killed.checkpoints.saved[-1].state.version, "weights before the first admission"
    assert again.learner.weights == whole.learner.weights
    assert again.checkpoints.saved[-1].state.history == whole.checkpoints.saved[-1].state.history


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

    second = World(config, resume=saved, turns=at + 1)
    ending = await second.run()
    assert (ending.step, ending.drained) == (6, False)
    trained = [g.group_id for w in (first, second) for b in w.learner.trained for g in b.groups]
    assert sorted(trained) == list(range(6 * PROMPTS)), "nothing lost, nothing trained twice"
    if order == "Strict" and eta < 2:  # with 2, a batch may be sampled with fresher weights than without the drain
        whole = World(config, turns=9)
        await whole.run()
        assert second.learner.weights == whole.learner.weights


async def test_a_drain_that_runs_out_of_time_leaves_without_waiting_for_rollouts() -> None:
    world = World(stage_config(6, eta=1))
    world.sampler.hold = asyncio.Event()
    task = asyncio.create_task(world.run())
    while world.sampler.version < 0:
        await asyncio.sleep(0)
    world.stop.request(0.05, "test")
    ending = await task
    assert (ending.step, ending.drained) == (0, True)
    assert world.checkpoints.saved == [], "nothing was trained, nothing is saved"


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


async def test_too_many_failed_judges_end_the_run_after_saving_and_their_groups_are_sampled_anew() -> None:
    async def fails_in_batch_three(problem: Problem, response: str, key: str) -> Outcome:
        group_id = int(key.split("/")[1])
        if group_id == 2 * PROMPTS:
            return Outcome(None, "error", 0.0, 3)
        return await scripted_reward(problem, response, key)

    config = stage_config(6, every=100)
    first = World(config, reward=fails_in_batch_three)
    with pytest.raises(SandboxUnavailable, match="2 of 6 programs of step 3"):
        await first.run()
    [saved] = first.checkpoints.saved
    assert saved.state.step == 2
    assert 2 * PROMPTS in saved.state.pending
    assert all(s.outcome.reward is not None for g in saved.state.groups for s in g.samples)

    second = World(config, resume=saved)
    await second.run()
    trained = [g.group_id for w in (first, second) for b in w.learner.trained for g in b.groups]
    assert sorted(trained) == list(range(6 * PROMPTS))


async def test_a_lost_sampler_ends_the_loop_with_its_error_and_hangs_nobody() -> None:
    world = World(stage_config(6))
    world.sampler.fail_after = 9
    with pytest.raises(SamplerLost):
        await world.run()


async def test_a_next_stage_goes_on_in_the_order_of_problems() -> None:
    first = World(stage_config(2))
    await first.run()
    state = PipelineState(step=0, total_steps=2, version=2, next_group_id=2 * PROMPTS)
    second = World(stage_config(2), resume=Saved(state, first.learner.weights, False, None))
    await second.run()
    assert second.sampler.pushed == [2, 3, 4]
    assert [g.group_id for b in second.learner.trained for g in b.groups] == list(range(2 * PROMPTS, 4 * PROMPTS))


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
    assert "does not mend itself" in caplog.text
