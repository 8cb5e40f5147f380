"""A training loop with a scripted sampler and learner at its edges, for tests of the controller.

The scripted learner's weights are a digest of everything it was trained on, and the scripted sampler answers from a
digest of its weights, the request, and the wave that it was begun in. So two runs end with the same weights only if
every batch was the same, sample by sample, sampled with the same weights, in the same order.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from shared_device import Device

from deepcoder_contracts.gate import GateRecord
from deepcoder_contracts.judge import TestCase
from deepcoder_contracts.progress import TrainerPhase
from deepcoder_contracts.stage import StageConfig
from deepcoder_trainer.checkpoint.errors import CheckpointFailed
from deepcoder_trainer.checkpoint.state import PipelineState
from deepcoder_trainer.errors import SamplerLost
from deepcoder_trainer.pipeline.controller import Controller
from deepcoder_trainer.problems.prompt import EncodedProblem
from deepcoder_trainer.protocols import Ending, StepReport
from deepcoder_trainer.rollout.rollout import Rollout, Sampling
from deepcoder_trainer.sampler.waves import Waves
from deepcoder_trainer.stopping import Stop
from deepcoder_trainer.types import (
    Batch,
    Finish,
    Generation,
    GenerationRequest,
    Group,
    Outcome,
    Problem,
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
    threads: tuple[int, ...] = (1,)
    version: int = -1
    pushed: list[int] = field(default_factory=list)
    fail_after: int | None = None
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    holds: Callable[[int], bool] = lambda _group: False
    """Groups whose requests wait for `hold`."""
    held: int = 0
    """Requests that wait or have waited for it."""
    lost: bool = False
    """Whether they are lost then."""
    hold_push: asyncio.Event | None = None
    device: Device | None = None
    """That it shares with the learner."""
    waves: Waves = field(default_factory=Waves)

    async def generate(self, request: GenerationRequest) -> Generation:
        """As an engine's actor does: a request of a wave waits until all of the wave are here."""
        return await self.waves.generate(self, request)

    async def begin(self, requests: Sequence[GenerationRequest]) -> list[Awaitable[Generation]]:
        together = [r.request_id for r in requests] if requests[0].wave is not None else []
        return [self._respond(request, together) for request in requests]

    async def _respond(self, request: GenerationRequest, together: list[str]) -> Generation:
        assert self.version >= 0, "asked before weights were pushed"
        if self.device is not None:
            self.device.is_the_samplers(self)
        weights, version = self.weights, self.version
        if request.request_id.startswith("probe/"):  # no group's
            return Generation(np.zeros(2, np.int32), np.zeros(2, np.float32), Finish.STOP, "", ())
        if self.fail_after is not None:
            self.fail_after -= 1
            if self.fail_after < 0:
                raise SamplerLost("gone")
        await self.take_time()
        if self.holds(int(request.request_id.split("/")[1].partition(".")[0])):
            self.held += 1
            await self.hold.wait()
            if self.lost:
                raise SamplerLost("gone")
        value = digest(weights, together, request.request_id, request.seed, request.prompt_ids.tolist())
        ids = np.frombuffer(bytes.fromhex(value)[:8], np.uint8).astype(np.int32)
        spans = (VersionSpan(version, 0, 8),)
        if self.version != version:  # updated in flight
            spans = (VersionSpan(version, 0, 4), VersionSpan(self.version, 4, 8))
        return Generation(ids, np.zeros(8, np.float32), Finish.STOP, value, spans)

    def each(self) -> list[Callable[[GenerationRequest], Awaitable[Generation]]]:
        return [self.generate]

    async def take_time(self) -> None:
        for _ in range(self.turns.randrange(12)):
            await asyncio.sleep(0)

    async def start(self) -> None: ...

    async def sleep(self) -> None:
        assert self.device is not None, "it shares nothing"
        await self.device.sleep(self)

    async def wake(self) -> None:
        assert self.device is not None, "it shares nothing"
        await self.device.wake(self)

    async def update_weights(self, refs: WeightRefs, version: int, clear_cache: bool = False) -> None:
        if self.hold_push is not None:
            await self.hold_push.wait()
        if self.device is not None:
            self.device.is_between_turns(self)
        self.weights, self.version = refs.dtype, version
        self.pushed.append(version)

    async def close(self) -> None:
        if self.device is not None:
            self.device.awake.discard(id(self))


@dataclass
class ScriptedLearner:
    weights: str = "start"
    trained: list[Batch] = field(default_factory=list)
    on_train: object = None
    threads: tuple[int, ...] = (1,)
    device: Device | None = None
    """That it shares with the samplers."""

    async def park(self) -> None:
        assert self.device is not None, "it shares nothing"
        await self.device.park()

    async def unpark(self) -> None:
        assert self.device is not None, "it shares nothing"
        await self.device.unpark()

    async def train(self, batch: Batch) -> Mapping[str, float]:
        if self.device is not None:
            self.device.is_the_learners()
            self.device.turns.append("train")
        if callable(self.on_train):
            self.on_train(batch.step)
        await asyncio.sleep(0)
        self.trained.append(batch)
        content = [(s.group_id, s.index, s.generation.text, s.outcome.reward) for s in batch.samples]
        self.weights = digest(self.weights, batch.step, content)
        return {"loss": 0.5}

    async def gaps(self, batch: Batch) -> list[float]:
        if self.device is not None:
            self.device.is_the_learners()
        return [0.25]

    async def export_weights(self) -> WeightRefs:
        if self.device is not None:
            self.device.is_the_learners()
        return WeightRefs((), self.weights)


@dataclass
class Saved:
    state: PipelineState
    weights: str
    final: bool
    gate: GateRecord | None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass
class MemoryCheckpoints:
    """Keeps what was committed. `failing` commits fail, as `wait` says; uploads take until `uploaded` is set."""

    learner: ScriptedLearner
    saved: list[Saved] = field(default_factory=list)
    copied: list[int] = field(default_factory=list)
    forgotten: list[int] = field(default_factory=list)
    """Copied aside, and not committed."""
    failing: int = 0
    failed: bool = False
    uploaded: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.uploaded.set()

    async def copy(self, step: int) -> None:
        await asyncio.sleep(0)
        if self.learner.device is not None:
            self.learner.device.is_the_learners()
        self.copied.append(step)
        self.weights = self.learner.weights

    async def commit(self, state, *, metrics, final=False, gate=None) -> None:
        assert self.copied[-1] == state.step, "weights are copied aside first"
        self.failed = self.failing > 0
        self.failing -= 1
        if not self.failed:
            self.saved.append(Saved(state, self.weights, final, gate, dict(metrics)))

    async def close(self) -> None:
        self.forgotten.append(self.copied[-1])

    async def wait(self) -> None:
        await self.uploaded.wait()
        failed, self.failed = self.failed, False  # a failure is told once
        if failed:
            raise CheckpointFailed("no route to storage")


@dataclass
class Notes:
    steps: list[StepReport] = field(default_factory=list)
    phases: list[TrainerPhase] = field(default_factory=list)

    def on_phase(self, phase: TrainerPhase) -> None:
        self.phases.append(phase)

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report)


async def scripted_reward(problem: Problem, response: str, key: str) -> Outcome:
    await asyncio.sleep(0)
    passed = int(response[:2], 16) % 2 == 0
    return Outcome(float(passed), "passed" if passed else "wrong_answer", 0.01)


def stage_config(
    steps: int,
    *,
    every: int = 2,
    eta: int = 1,
    order: str = "Strict",
    recipe: Mapping[str, object] | None = None,
    **stage: object,
) -> StageConfig:
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
                **(recipe or {}),
            },
            "storage": {"uri": "file:///nowhere", "everySteps": every, "drainSeconds": 60},
            "provenance": {"configDigest": "sha256:" + "0" * 64},
        }
    )


class World:
    """One attempt's parts, kept for looking at afterwards."""

    def __init__(self, config: StageConfig, *, resume: Saved | None = None, turns: int = 0, reward=scripted_reward):
        self.config = config
        self.sampler: Any = ScriptedSampler(random.Random(turns))
        self.learner = ScriptedLearner(resume.weights if resume else "start")
        self.checkpoints: Any = MemoryCheckpoints(self.learner)
        self.notes = Notes()
        self.stop = Stop()
        self.reward = reward
        self.state = resume.state if resume else PipelineState(0, 0, 0, 0)
        self.metrics = resume.metrics if resume else {}
        self.evaluated: list[tuple[int, int]] = []
        self.unjudged: list[Batch] = []
        self.dropped: list[Group] = []
        self.score: Callable[[int], float] = lambda step: step / 10
        self.on_evaluate: Callable[[int], Awaitable[None]] | None = None
        self.gate: Callable[[], Awaitable[None]] | None = None
        self.probe: Any = None
        if config.stage.colocated:
            self.sampler.device = self.learner.device = Device()

    async def evaluate(self, step: int) -> Mapping[str, float]:
        self.evaluated.append((step, self.sampler.version))
        if self.on_evaluate is not None:
            await self.on_evaluate(step)
        return {"eval/held/pass_at_1": self.score(step)}

    async def run(self, seconds: float = 20) -> Ending:
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
            metrics=self.metrics,
            on_unjudged=self.unjudged.append,
            on_dropped=self.dropped.append,
            evaluate=self.evaluate if self.config.stage.evaluate else None,
            admission_gate=self.gate,
            probe=self.probe,
        )
        async with asyncio.timeout(seconds):
            return await controller.run()


EVALUATE = {"datasets": [{"name": "held", "uri": "/h"}], "everySteps": 2}


def trained(*worlds: World) -> list[int]:
    return sorted(g.group_id for w in worlds for b in w.learner.trained for g in b.groups)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
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
