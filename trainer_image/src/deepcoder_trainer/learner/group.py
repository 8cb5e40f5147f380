"""All learner ranks behind one interface. The batch is packed here, and each rank gets its share.

Every call has a deadline and goes to all ranks at once. If a rank dies or does not answer in time, the whole learner
fails (`LearnerLost`), because the other ranks would wait for it in a collective. A lost rank is not replaced: the
attempt ends, and the next one resumes from the newest checkpoint. Ranks that do not answer are asked where they are
stuck, at the deadline and at half of the time, because the attempt may be given up before the deadline.

Uploads and downloads may take any time as long as each rank moves bytes: slow storage makes checkpoints late, but an
attempt that ended for it would never make one. If a rank lives and moves nothing, storage has failed, not the rank.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray

from deepcoder_contracts.learner_memory import tokens_on_device
from deepcoder_contracts.manifest import FileEntry, Manifest
from deepcoder_contracts.recipe import Recipe
from deepcoder_contracts.stage import StageConfig, Storage
from deepcoder_trainer.checkpoint.errors import StorageUnavailable
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.cluster import HALF, THREADS, begun_with
from deepcoder_trainer.errors import BadConfig, LearnerLost
from deepcoder_trainer.grpo.flops import sequence_flops
from deepcoder_trainer.grpo.pack import (
    Cost,
    OptimizerStep,
    plan_step,
    split_groups,
    tokens_alone,
    training_sequences,
)
from deepcoder_trainer.grpo.summary import combine
from deepcoder_trainer.learner import hang_report
from deepcoder_trainer.learner.actor import LearnerActor
from deepcoder_trainer.learner.answers import Movement, answers_of, died, errors_of
from deepcoder_trainer.learner.rank_settings import RankSettings, Sums
from deepcoder_trainer.modelconfig import read_model_config
from deepcoder_trainer.shapes import model_shape
from deepcoder_trainer.thread_stacks import ThreadStacks
from deepcoder_trainer.types import Batch, WeightRefs

log = logging.getLogger(__name__)
T = TypeVar("T")

RESOURCE = "learner"
"""Ray resource of which a pod (or a machine) offers one for each rank that it can hold."""


@dataclass(frozen=True)
class Deadlines:
    """Deadline of each kind of call, in seconds."""

    start: float = 1800
    """Schedule the actors and load the model."""

    train: float = 1800
    """Run one training step."""

    transfer: float = 3600
    """Move the next byte of a checkpoint; or write an export, or compare it."""

    state: float = 900
    """Copy state aside, load it, or export weights."""

    close: float = 30
    """Shut down."""

    where: float = 10
    """Report where a silent rank is stuck."""

    @classmethod
    def of(cls, stall_seconds: float) -> Deadlines:
        """Return the deadlines of a stage: of those that a large model or slow nodes need longer, none below these."""
        return cls(
            start=max(cls.start, stall_seconds),
            train=stall_seconds,
            transfer=max(cls.transfer, stall_seconds),
            state=max(cls.state, stall_seconds / 2),
        )


LOOK_SECONDS = 60.0
"""Longest time between two looks at what a transfer has moved."""


class Way(Enum):
    """How weights are transferred to the samplers."""

    STORE = "ObjectStore"
    """Through Ray's object store, in host memory."""
    CARD = "Card"
    """A sampler on the same GPU as the rank loads them from that GPU's memory."""
    BROADCAST = "NCCL"
    """Rank 0 broadcasts them to samplers on other GPUs."""


WAY = "DEEPCODER_WEIGHT_TRANSFER"
"""Environment variable: `ObjectStore` replaces the default `NCCL`, which has not been run on GPUs yet."""


def way_between_gpus() -> Way:
    """Return the transfer between GPUs that are not shared. Raises `BadConfig` if `WAY` has any other value."""
    chosen = os.environ.get(WAY, Way.BROADCAST.value)
    if chosen not in (Way.BROADCAST.value, Way.STORE.value):
        raise BadConfig(f"the environment variable {WAY} is {chosen!r}: set it to NCCL or ObjectStore", field=WAY)
    return Way(chosen)


async def start_learners(
    config: StageConfig,
    model_dir: Path,
    places: Sequence[Any] = (),
    *,
    threads: int | None = None,
    deadlines: Deadlines | None = None,
) -> RayLearner:
    """Start `stage.resources.learners` ranks and load the model; Ray must be up.

    A machine without `model_dir` fetches `config.model` itself. `places` are the placements that each rank shares with
    a sampler; without them Ray chooses. `threads` is the number of CPU threads per rank; the default is the container's
    limit. Raises `BadConfig`, or `LearnerLost` if Ray does not place the ranks in time.
    """
    world = config.stage.resources.learners
    shape = model_shape(read_model_config(model_dir))
    deadlines = deadlines or Deadlines.of(config.stage.stall_seconds)
    settings = RankSettings(
        model_dir=str(model_dir),
        recipe=config.recipe,
        run_seed=config.recipe.seed,
        accelerators=config.stage.resources.accelerators,
        threads=threads,
        collective_timeout_s=deadlines.train,
        rope=config.stage.rope,
    )
    remote = ray.remote(
        num_cpus=0,
        num_gpus=(HALF if places else 1) if settings.accelerators else 0,
        resources={RESOURCE: 1},
        concurrency_groups={"io": 1, "where": 1},
        max_restarts=0,
        **begun_with(THREADS),
    )(LearnerActor)
    sources = Sources(endpoint=config.storage.endpoint, region=config.storage.region, deadline_s=deadlines.start)
    chosen = [remote.options(scheduling_strategy=place) for place in places] or [remote] * world
    actors = [each.remote(settings, world, config.model, sources) for each in chosen]
    capacity = tokens_on_device(config.recipe, config.stage.context_tokens)
    way = Way.STORE
    if settings.accelerators:
        way = Way.CARD if places else way_between_gpus()
    learner = RayLearner(actors, config.recipe, capacity, deadlines, partial(sequence_flops, shape), way=way)
    try:
        await learner.start()
    except BaseException:
        learner.kill()
        raise
    return learner


class RayLearner:
    """Implements the `Learner` protocol with one Ray actor per rank."""

    def __init__(
        self,
        actors: Sequence[Any],
        recipe: Recipe,
        capacity: int,
        deadlines: Deadlines,
        cost: Cost = tokens_alone,
        *,
        way: Way = Way.STORE,
    ) -> None:
        """`capacity` is the token budget of a device per micro-batch; `way` is the weight transfer to the samplers."""
        self._actors = list(actors)
        self._recipe = recipe
        self._capacity = capacity
        self._deadlines = deadlines
        self._cost = cost
        self._way = way
        self._unended: asyncio.Future[Any] | None = None
        """Ends with the calls of a transfer that was given up, which may still be at work on its folder."""
        self._unsaved: str | None = None
        """Folder of a save that was left out because of them."""
        self.threads: tuple[int, ...] = ()
        """CPU compute threads of each rank, in rank order, after `start`."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self._actors)

    async def start(self) -> None:
        """Number the ranks, connect them, and load the model."""
        seconds = self._deadlines.start
        try:
            machines = await self._all("machine", seconds=seconds)
        except LearnerLost as e:
            offered = ray.cluster_resources().get(RESOURCE, 0)
            raise LearnerLost(
                f"{e}; {self.world_size} ranks need as many {RESOURCE!r} resources, the Ray cluster offers {offered:g}"
            ) from e
        # Sequence-parallel ranks have consecutive numbers, so ranks are numbered machine by machine.
        self._actors = [self._actors[i] for i in sorted(range(self.world_size), key=machines.__getitem__)]
        rendezvous = None
        if self.world_size > 1:
            [rendezvous] = await self._wait([self._actors[0].listen.remote()], seconds, "listen")
        calls = [actor.start.remote(rank, rendezvous) for rank, actor in enumerate(self._actors)]
        self.threads = tuple(await self._wait(calls, seconds, "start"))

    async def train(self, batch: Batch) -> Mapping[str, float]:
        """See `Learner`."""
        began = time.monotonic()
        plans = await asyncio.to_thread(plan_batch, batch, self._recipe, self._capacity, self.world_size, self._cost)
        packed = time.monotonic()
        calls = [actor.train.remote(plan) for actor, plan in zip(self._actors, plans, strict=True)]
        answers: list[Sums] = await self._wait(calls, self._deadlines.train, f"training step {batch.step}")
        return {**combine(answers), "pack_seconds": packed - began}

    async def export_weights(self) -> WeightRefs:
        """See `Learner`."""
        dtype = self._recipe.precision.dtype
        if self._way is Way.CARD:
            return WeightRefs((), dtype, tuple(await self._all("share_weights", seconds=self._deadlines.state)))
        if self._way is Way.BROADCAST:
            [offer] = await self._wait([self._actors[0].offer_weights.remote()], self._deadlines.state, "offer_weights")
            return WeightRefs((), dtype, broadcast=offer, send=self._send)
        chunks = (await self._all("export_weights", seconds=self._deadlines.state))[0]
        return WeightRefs(tuple(chunks), dtype)

    async def _send(self, receivers: Sequence[str]) -> None:
        await self._all("send_weights", list(receivers), seconds=self._deadlines.state)

    async def gaps(self, batch: Batch) -> list[float]:
        """See `Learner`."""
        whole = self._recipe.model_copy(update={"optimizer_steps": 1})
        plans = plan_batch(batch, whole, self._capacity, self.world_size, self._cost)
        calls = [actor.gaps.remote(plan[0]) for actor, plan in zip(self._actors, plans, strict=True)]
        ranks: list[list[float]] = await self._wait(calls, self._deadlines.train, "gaps")
        return [gap for rank in ranks for gap in rank]

    async def park(self) -> None:
        """See `Learner`."""
        await self._all("park", seconds=self._deadlines.state)

    async def unpark(self) -> None:
        """See `Learner`."""
        await self._all("unpark", seconds=self._deadlines.state)

    async def save(self, directory: str) -> None:
        """See `Learner`."""
        # An upload that was given up may still remove the files of a new save of its folder, and its own fill the disk.
        self._unsaved = directory if self._unended is not None and not self._unended.done() else None
        if self._unsaved is None:
            await self._all("save", directory, seconds=self._deadlines.state)

    async def upload(self, directory: str, storage: Storage, prefix: str) -> list[FileEntry]:
        """See `Learner`. An error is raised once no rank works on `directory` any more, so it can be saved again.

        The exception is an upload that hangs: until it has ended, `save` leaves out what is asked for.
        """
        if directory == self._unsaved:
            raise StorageUnavailable(f"{storage.uri}/{prefix} is not saved: the upload before it hangs")
        calls = [actor.upload.remote(directory, storage, prefix) for actor in self._actors]
        parts: list[list[FileEntry]] = await self._move(calls, f"upload to {storage.uri}/{prefix}", all_end=True)
        return sorted((entry for part in parts for entry in part), key=lambda e: e.path)

    async def download(self, directory: str, storage: Storage, prefix: str, manifest: Manifest) -> None:
        """See `Learner`."""
        calls = [actor.download.remote(directory, storage, prefix, manifest) for actor in self._actors]
        await self._move(calls, f"download from {storage.uri}/{prefix}", all_end=False)

    async def load(self, directory: str, *, optimizer: bool) -> None:
        """See `Learner`; the local files are removed afterwards."""
        await self._all("load", directory, optimizer, seconds=self._deadlines.state)
        await self._all("discard", directory, seconds=self._deadlines.state)

    async def save_pretrained(self, directory: str) -> None:
        """See `Learner`."""
        await self._all("save_pretrained", directory, seconds=self._deadlines.transfer)

    async def beside(self, work: Callable[[Path], T]) -> T:
        """See `Learner`."""
        [result] = await self._wait([self._actors[0].beside.remote(work)], self._deadlines.transfer, "work beside")
        made: T = result
        return made

    async def close(self) -> None:
        """Shut down the ranks, gracefully within the deadline, otherwise by force."""
        try:
            await self._all("close", seconds=self._deadlines.close)
        except LearnerLost as e:
            log.warning("learners did not close: %s", e)
        self.kill()

    def kill(self) -> None:
        """Kill the actors' processes."""
        for actor in self._actors:
            ray.kill(actor)

    async def _all(self, method: str, *args: Any, seconds: float) -> list[Any]:
        calls = [getattr(actor, method).remote(*args) for actor in self._actors]
        return await self._wait(calls, seconds, method)

    async def _wait(self, calls: Sequence[Any], seconds: float, what: str) -> list[Any]:
        """Return all answers in rank order. Raises a rank's error, or `LearnerLost` if one dies or does not answer."""
        tasks = [asyncio.ensure_future(call) for call in calls]
        looking = asyncio.create_task(self._look_in(seconds / 2, tasks, what))
        try:
            _, pending = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in (looking, *tasks):
                task.cancel()
        if pending and not errors_of(tasks):
            silent = [rank for rank, task in enumerate(tasks) if task in pending]
            where = await self._where(silent)
            raise LearnerLost(
                f"no answer from learner {hang_report.names(silent)} within {seconds:g} s ({what}): {where}"
            )
        return answers_of(tasks, what)

    async def _move(self, calls: Sequence[Any], what: str, *, all_end: bool) -> list[Any]:
        """As `_wait`, but for as long as all ranks at work move bytes. Raises `StorageUnavailable` if one only lives.

        An error is raised at once or, with `all_end`, when the other ranks have finished too, unless a rank died.
        """
        tasks = [asyncio.ensure_future(call) for call in calls]
        clock, longest = asyncio.get_running_loop().time, self._deadlines.transfer
        movement = Movement(len(tasks), clock())
        try:
            while working := [rank for rank, task in enumerate(tasks) if not task.done()]:
                errors = errors_of(tasks)
                if died(errors) or (errors and not all_end):
                    break
                waited = [tasks[rank] for rank in working]
                pause = min(LOOK_SECONDS, longest / 4)
                await asyncio.wait(waited, timeout=pause, return_when=asyncio.FIRST_EXCEPTION)
                if not (working := [rank for rank in working if not tasks[rank].done()]):
                    break
                counts = await self._ask("moved", working)
                movement.look(counts, clock())
                if idle := movement.idle(working, clock(), longest):
                    said = f"learner {hang_report.names(idle)} moved nothing for {longest:g} s ({what}): "
                    said += await self._where(idle)
                    if any(counts[rank] is None for rank in idle):
                        raise LearnerLost(said)
                    left = [tasks.pop(rank) for rank in reversed(working)]
                    self._unended = asyncio.gather(*left, return_exceptions=True)
                    raise StorageUnavailable(f"{said}: see whether the bucket's server answers, and how fast")
        finally:
            for task in tasks:
                task.cancel()
        return answers_of(tasks, what)

    async def _look_in(self, seconds: float, tasks: Sequence[asyncio.Future[Any]], what: str) -> None:
        """After `seconds`, log where the ranks that have not answered are stuck."""
        await asyncio.sleep(seconds)
        if silent := [rank for rank, task in enumerate(tasks) if not task.done()]:
            where = await self._where(silent)
            log.warning("no answer from learner %s for %g s (%s): %s", hang_report.names(silent), seconds, what, where)

    async def _where(self, ranks: Sequence[int]) -> str:
        """Return where the ranks are stuck, and log the stacks of their threads."""
        found: dict[int, ThreadStacks | None] = await self._ask("where", ranks)
        for threads in hang_report.stacks(found):
            log.warning("threads of learner %s", threads)
        return hang_report.places(found)

    async def _ask(self, method: str, ranks: Sequence[int]) -> dict[int, Any]:
        """Return the ranks' answers, with None for a rank that gives none in time."""
        asked = [asyncio.ensure_future(getattr(self._actors[rank], method).remote()) for rank in ranks]
        try:
            await asyncio.wait(asked, timeout=self._deadlines.where)
            answers = [task.result() if task.done() and task.exception() is None else None for task in asked]
        finally:
            for task in asked:
                task.cancel()
        return dict(zip(ranks, answers, strict=True))


def plan_batch(
    batch: Batch, recipe: Recipe, capacity: int, ranks: int, cost: Cost = tokens_alone
) -> list[list[OptimizerStep]]:
    """Return the optimizer steps of each rank: the batch's groups split into steps, each packed into micro-batches."""
    sp = recipe.sequence_parallel
    steps = [
        plan_step(training_sequences(groups, recipe), capacity, ranks // sp, sp, cost)
        for groups in split_groups(batch.groups, recipe.optimizer_steps)
    ]
    return [[step[rank] for step in steps] for rank in range(ranks)]
