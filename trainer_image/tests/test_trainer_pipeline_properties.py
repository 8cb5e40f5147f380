"""The real loop under everything that may happen to it: whatever ends when, fails, dies, is stopped or killed, no group
is staler than allowed, none is lost or trained twice, nobody waits for ever, and a strict run ends with the same bits.

Time is virtual: a wait costs nothing, and one that could never end is found at once.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from controller_world import (
    PROMPTS,
    Device,
    ScriptedLearner,
    ScriptedSampler,
    World,
    scripted_reward,
    stage_config,
    trained,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcoder_contracts.manifest import FileEntry, Manifest
from deepcoder_contracts.stage import StageConfig, Storage
from deepcoder_trainer.checkpoint.errors import StorageUnavailable
from deepcoder_trainer.checkpoint.reader import find_resume_point
from deepcoder_trainer.checkpoint.storage_file import FileStore
from deepcoder_trainer.checkpoint.transfer import download_files, upload_files
from deepcoder_trainer.checkpoint.writer import CheckpointWriter
from deepcoder_trainer.errors import SamplerLost
from deepcoder_trainer.protocols import Ending
from deepcoder_trainer.rollout.in_flight import InFlight
from deepcoder_trainer.sampler.group import REPLACEMENTS, SamplerGroup
from deepcoder_trainer.types import Batch, Generation, GenerationRequest, Outcome, Problem

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from virtual_clock import run_virtually

FOR_EVER = 3600.0
"""Virtual seconds after which a run that has not ended never will; one of these takes a minute at most."""


LONGEST_STEP = 5.0


@dataclass(frozen=True)
class Case:
    """One course of events."""

    eta: int
    order: str
    steps: int
    every: int
    evaluate: int
    """Evaluate each so many steps; 0: never."""
    deterministic: bool
    refill: bool
    chance: int
    """Seed of every duration."""
    deaths: tuple[int, ...] = ()
    """After how many requests the first engines die."""
    colocated: bool = False
    """Samplers and learner take turns."""

    @property
    def config(self) -> StageConfig:
        recipe = ("deterministic",) * self.deterministic + ("refill",) * self.refill
        return _config(self.eta, self.order, self.steps, self.every, self.evaluate, recipe, self.colocated)


@cache
def _config(
    eta: int, order: str, steps: int, every: int, evaluate: int, recipe: tuple[str, ...], colocated: bool
) -> StageConfig:
    evaluation: dict[str, Any] = {}
    if evaluate:
        evaluation = {"evaluate": {"datasets": [{"name": "held", "uri": "/h"}], "everySteps": evaluate}}
    if colocated:
        evaluation |= {"placement": "Colocated"}
    switches = {"refillLimit": 2, **dict.fromkeys(recipe, True)}
    return stage_config(steps, every=every, eta=eta, order=order, recipe=switches, **evaluation)


@st.composite
def cases(draw: Any, *, least_steps: int = 1) -> Case:
    colocated = draw(st.sampled_from([False, False, False, True]))
    order = "Strict" if colocated else draw(st.sampled_from(["Strict", "Window"]))
    deterministic = order == "Strict" and draw(st.booleans())
    eta = 0 if colocated else draw(st.integers(1 if order == "Window" else 0, 3))
    # One of two engines may die where none is replaced.
    deaths = () if deterministic else tuple(draw(st.lists(st.integers(0, 12), max_size=1 if colocated else 2)))
    return Case(
        eta=eta,
        order=order,
        steps=draw(st.integers(least_steps, 6)),
        every=draw(st.integers(1, 4)),
        evaluate=draw(st.integers(0, 3)),
        deterministic=deterministic,
        refill=not deterministic and draw(st.booleans()),
        chance=draw(st.integers(0, 2**16)),
        deaths=deaths,
        colocated=colocated,
    )


moments = st.integers(0, 4000).map(lambda hundredths: hundredths / 100)


class Engine(ScriptedSampler):
    """Takes its time for a response, and may die of it with all that it was asked for."""

    def __init__(self, chance: random.Random, dies_after: int | None) -> None:
        super().__init__(random.Random(chance.random()))
        self._chance = chance
        self._left = dies_after
        self._death: asyncio.Event = asyncio.Event()

    async def generate(self, request: GenerationRequest) -> Generation:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                self._death.set()
        response = asyncio.ensure_future(super().generate(request))
        death = asyncio.ensure_future(self._death.wait())
        try:
            await asyncio.wait({response, death}, return_when=asyncio.FIRST_COMPLETED)
            if self._death.is_set():
                raise SamplerLost("the engine died")
            return response.result()
        finally:
            response.cancel()
            death.cancel()

    async def take_time(self) -> None:
        await asyncio.sleep(self._chance.choice([0, 0.01, 0.3, 1, 3]))


class Slow(ScriptedLearner):
    """Takes its time for a step."""

    chance: random.Random

    async def train(self, batch: Batch) -> Mapping[str, float]:
        await asyncio.sleep(self.chance.choice([0, 0.1, 1, LONGEST_STEP]))
        return await super().train(batch)


class Course(World):
    """A run of a case: real sampler group, engines that die, judges and learners that take their time."""

    def __init__(self, case: Case, *, chance: int = 0, **rest: Any) -> None:
        super().__init__(case.config, **rest)
        self.case = case
        self.chance = random.Random(f"{case.chance}/{chance}")
        deaths = iter(case.deaths if chance == 0 else ())
        self.device: Device | None = None
        learner = Slow(self.learner.weights)
        learner.chance = self.chance
        if case.colocated:
            self.device = Device(pause=lambda: asyncio.sleep(self.chance.choice([0, 0.1, 2])))
            learner.device = self.device

        def engine() -> Engine:
            made = Engine(self.chance, next(deaths, None))
            made.device = self.device
            return made

        self.sampler = SamplerGroup(engine, size=2, replacements=0 if case.colocated else REPLACEMENTS)
        self.learner = self.checkpoints.learner = learner
        judged, judging = self.reward, InFlight()
        room = self.chance.choice([0, 1, 4, 1000])
        self.gate = lambda: judging.room(lambda: room)

        async def reward(problem: Problem, response: str, key: str) -> Outcome:
            with judging.one():
                await asyncio.sleep(self.chance.choice([0, 0, 0.01, 0.5, 8]))
            return await judged(problem, response, key)

        async def evaluate(step: int) -> None:
            await asyncio.sleep(self.chance.choice([0, 2, 20]))

        self.reward, self.on_evaluate = reward, evaluate

    async def evaluate(self, step: int) -> Mapping[str, float]:
        self.evaluated.append((step, step))
        assert self.on_evaluate is not None
        await self.on_evaluate(step)
        return {"eval/held/pass_at_1": self.score(step)}

    async def run(self, seconds: float = FOR_EVER) -> Ending:
        await self.sampler.start()
        try:
            return await super().run(seconds)
        finally:
            await self.sampler.close()
            self.check()

    def check(self) -> None:
        """Staleness of all that was trained, sample by sample, and in strict order the versions themselves."""
        eta = self.case.eta
        for batch in self.learner.trained:
            version = self.state.total_steps - self.state.step + batch.step - 1
            for group in batch.groups:
                assert 0 <= version - group.admitted_version <= eta, f"group {group.group_id} of step {batch.step}"
                assert group.draw <= (2 if self.case.refill else 0)
                spans = {span.version for sample in group.samples for span in sample.generation.versions}
                assert version - min(spans) <= eta, f"group {group.group_id} of step {batch.step} has versions {spans}"
            if self.case.order == "Strict":
                first = (batch.step - 1) * PROMPTS
                assert [g.group_id for g in batch.groups] == list(range(first, first + PROMPTS))


@cache
def weights_of(calm: Case) -> str:
    world = Course(calm)
    run_virtually(world.run())
    return world.learner.weights


def ends_alike(world: World, case: Case) -> None:
    """In strict order the weights at the end are the same whatever the course of events."""
    if case.order == "Strict":
        assert world.learner.weights == weights_of(replace(case, every=1, chance=0, deaths=()))


@given(case=cases())
@settings(max_examples=120, deadline=None)
def test_whatever_ends_when_or_dies_every_group_is_trained_once_within_the_bound(case: Case) -> None:
    world = Course(case)
    ending = run_virtually(world.run())
    assert (ending.step, ending.drained) == (case.steps, False)
    assert trained(world) == list(range(case.steps * PROMPTS))
    assert world.checkpoints.saved[-1].final
    ends_alike(world, case)


class Broken(RuntimeError):
    """What a rollout fails with."""


@given(case=cases(), group=st.integers(0, 17))
@settings(max_examples=60, deadline=None)
def test_a_rollout_that_fails_ends_the_run_with_its_error_and_the_next_goes_on(case: Case, group: int) -> None:
    async def reward(problem: Problem, response: str, key: str) -> Outcome:
        if int(key.split("/")[1].partition(".")[0]) == group % (case.steps * PROMPTS):
            raise Broken(key)
        return await scripted_reward(problem, response, key)

    first = Course(case, reward=reward)
    try:
        run_virtually(first.run())
    except Broken:
        pass
    else:
        raise AssertionError("it ended as if nothing had failed")
    saved = first.checkpoints.saved[-1] if first.checkpoints.saved else None
    second = Course(case, chance=1, resume=saved)
    assert run_virtually(second.run()).step == case.steps
    kept = [b for b in first.learner.trained if saved is not None and b.step <= saved.state.step]
    first.learner.trained = kept
    assert trained(first, second) == list(range(case.steps * PROMPTS))


@given(case=cases(), stops=st.lists(st.tuples(moments, st.sampled_from([0.5, 10.0, 300.0])), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_a_run_that_is_stopped_again_and_again_loses_nothing(case: Case, stops: list[tuple[float, float]]) -> None:
    async def stopped(world: Course, at: float, seconds: float) -> Ending:
        asyncio.get_running_loop().call_later(at, world.stop.request, seconds, "test")
        return await world.run(at + seconds + 60)

    saved, lives, cut_off = None, [], False
    for at, seconds in [*stops, (FOR_EVER, 0.0)]:
        lives.append(Course(case, chance=len(lives), resume=saved))
        ending = run_virtually(stopped(lives[-1], at, seconds))
        saved = lives[-1].checkpoints.saved[-1] if lives[-1].checkpoints.saved else saved
        reached = saved.state.step if saved is not None else 0
        assert ending.step == reached or seconds < LONGEST_STEP, "what was trained is saved"
        lives[-1].learner.trained = [b for b in lives[-1].learner.trained if b.step <= reached]
        if not ending.drained:
            break
        cut_off |= saved is not None and saved.state.pending != ()
    assert ending.step == case.steps
    assert trained(*lives) == list(range(case.steps * PROMPTS))
    if case.eta < 2 and not cut_off:  # else what was not begun, or not done, is sampled with fresher weights
        ends_alike(lives[-1], case)


@dataclass
class Mortal:
    """A store that takes nothing any more once its writer is dead."""

    store: FileStore
    dead: bool = False
    uri: str = field(init=False)

    def __post_init__(self) -> None:
        self.uri = self.store.uri

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if self.dead and name.startswith(("put", "delete")):
            raise StorageUnavailable("the process is dead")
        return getattr(self.store, name)


class Stored(Slow):
    """A learner whose weights are a file of its checkpoints."""

    store: Any

    async def save(self, directory: str) -> None:
        if self.device is not None:
            self.device.is_the_learners()
        Path(directory, "learner").mkdir(parents=True, exist_ok=True)
        Path(directory, "learner/weights.json").write_text(json.dumps(self.weights))

    async def upload(self, directory: str, storage: Storage, prefix: str) -> list[FileEntry]:
        await asyncio.sleep(self.chance.choice([0, 0.1, 4]))
        root = Path(directory)
        return await asyncio.to_thread(upload_files, self.store, prefix, root, [root / "learner/weights.json"])

    async def download(self, directory: str, storage: Storage, prefix: str, manifest: Manifest) -> None:
        ours = [f for f in manifest.files if f.path.startswith("learner/")]
        await asyncio.to_thread(download_files, self.store, prefix, Path(directory), ours)

    async def load(self, directory: str, *, optimizer: bool) -> None:
        self.weights = json.loads(Path(directory, "learner/weights.json").read_text())


class Attempts:
    """Attempts of one run over one store, each killed or let go on."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        self.folder = folder
        config = case.config
        self.config = config.model_copy(
            update={"storage": config.storage.model_copy(update={"uri": f"file://{folder}/store"})}
        )
        self.count = 0

    async def attempt(self, killed_at: float | None) -> Course:
        """One attempt; all that it would do after `killed_at` comes to nothing."""
        self.count += 1
        store = Mortal(FileStore(self.folder / "store"))
        world = Course(self.case, chance=self.count)
        world.config = self.config.model_copy(update={"ordinal": self.count})
        learner = Stored(world.learner.weights)
        learner.chance, learner.store, learner.device = world.chance, store, world.device
        workdir = self.folder / f"attempt-{self.count}"
        point = await find_resume_point(world.config, learner, workdir=workdir, store=store)
        if point is not None:
            await learner.load(point.directory, optimizer=True)
            world.state, world.metrics = point.state, point.manifest.metrics
        world.learner = learner
        world.checkpoints = CheckpointWriter(
            world.config, learner, workdir=workdir, store=store, parent=point.ref if point else None
        )
        await world.checkpoints.claim()
        running = asyncio.create_task(world.run())
        await asyncio.wait({running}, timeout=killed_at)
        store.dead = not running.done()
        running.cancel()
        [ended] = await asyncio.gather(running, return_exceptions=True)
        if not store.dead and isinstance(ended, BaseException):
            raise ended
        return world


@given(case=cases(least_steps=3), kills=st.lists(moments, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_never_was(case: Case, kills: list[float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        attempts = Attempts(case, Path(folder))
        lives: list[Course] = []
        for at in [*kills, None]:
            lives.append(run_virtually(attempts.attempt(at)))
            if lives[-1].learner.trained and lives[-1].learner.trained[-1].step == case.steps and at is None:
                break
        begins = [life.state.step for life in lives] + [case.steps]
        surviving = [
            (g.group_id, batch.step)
            for life, until in zip(lives, begins[1:], strict=True)
            for batch in life.learner.trained
            if batch.step <= until
            for g in batch.groups
        ]
        assert sorted(g for g, _ in surviving) == list(range(case.steps * PROMPTS))
        ends_alike(lives[-1], case)
