"""One engine in one Ray actor, on a node with the resource `sampler`.

The actor gets the model's config and tokenizer as bytes and not as a path, because its node shares no disk with the
controller. Its environment is set before anything heavy is imported, because libgomp reads its variables when it is
loaded. Weights are fetched from the object store on the sampler's node, one chunk at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any

import ray
from ray.exceptions import ObjectFetchTimedOutError, ObjectLostError, RayActorError, RayTaskError

from deepcoder_trainer.cluster import HALF, begun_with
from deepcoder_trainer.sampler import engine as engines
from deepcoder_trainer.sampler.errors import WeightsLost
from deepcoder_trainer.sampler.settings import EngineSettings
from deepcoder_trainer.sampler.waves import Waves
from deepcoder_trainer.types import Generation, GenerationRequest, WeightRefs
from deepcoder_trainer.workdir import Workdir

CALLS = 1 << 20
"""Concurrent calls per actor, more than there ever are, because requests must queue in vLLM and not in Ray. In Ray's
queue they would block later calls: an update would wait for responses, and a wave would never become complete."""
FETCH_SECONDS = 300.0
"""Deadline for one chunk of weights to arrive from the learner's node."""


class SamplerActor:
    """Runs in the sampler's process. All methods are coroutines on one event loop."""

    def __init__(self, files: Mapping[str, bytes], settings: EngineSettings) -> None:
        self._folder = Workdir("model")
        for name, content in files.items():
            (self._folder.path / name).write_bytes(content)
        self._settings = settings
        self._engine: engines.Engine | None = None
        self._version: int | None = None
        self._asleep = False
        self._waves = Waves()
        self._updating = asyncio.Lock()

    async def start(self) -> int | None:
        """Start the engine. Return its number of CPU compute threads, None on a GPU."""
        self._engine = await engines.start_engine(str(self._folder.path), self._settings)
        return None if self._settings.accelerators else engines.threads(self._settings)

    async def generate(self, request: GenerationRequest) -> Generation:
        """Sample one response. Raises RuntimeError before the first weights, or while the engine sleeps."""
        if self._version is None:
            raise RuntimeError("generate before the first update_weights: the engine has no weights yet")
        if self._asleep:
            raise RuntimeError("generate while the engine sleeps: the learner has its device")
        return await self._waves.generate(self._live, request)

    async def update_weights(self, refs: WeightRefs, version: int, clear_cache: bool) -> None:
        """Load new weights between two steps of the engine. After a failure it stays paused and must be replaced.

        A sleeping engine first allocates memory for the weights, and continues to sleep.
        """
        async with self._updating:
            if self._asleep:
                await self._live.wake("weights")
            await engines.update_weights(
                self._live,
                [_fetcher(chunk) for chunk in refs.chunks],
                version,
                dtype=refs.dtype,
                clear_cache=clear_cache,
                cards=refs.cards,
                broadcast=refs.broadcast,
            )
            self._version = version

    async def sleep(self) -> None:
        """Release the device's memory to the learner."""
        async with self._updating:
            if not self._asleep:
                self._asleep = True
                await self._live.sleep()

    async def wake(self) -> None:
        """Take the memory back, after new weights have been loaded."""
        async with self._updating:
            if self._asleep:
                await self._live.wake("kv_cache")
                self._asleep = False

    async def close(self) -> None:
        """Shut down the engine and remove its files."""
        if self._engine is not None:
            await self._engine.close()
        self._folder.remove()

    @property
    def _live(self) -> engines.Engine:
        if self._engine is None:
            raise RuntimeError("the engine was not started")
        return self._engine


def _fetcher(chunk: Any) -> Any:
    async def fetch() -> Any:
        if isinstance(chunk, ray.ObjectRef):
            return await arrived(asyncio.wrap_future(chunk.future()))
        return chunk

    return fetch


async def arrived(chunk: Awaitable[Any]) -> Any:
    """Return a chunk from the object store. Raises `WeightsLost` if no sampler can get it any more.

    A timeout is not `WeightsLost`, because it concerns this node only: another sampler may get the chunk.
    """
    try:
        return await asyncio.wait_for(chunk, FETCH_SECONDS)
    except ObjectFetchTimedOutError:
        raise
    except (ObjectLostError, RayActorError, RayTaskError) as error:
        raise WeightsLost(f"weights were lost with the learner that exported them: {error}") from None


def create_actor(files: Mapping[str, bytes], settings: EngineSettings, place: Any = None) -> Any:
    """Create a sampler actor. Returns its handle at once; Ray starts the actor when a node has room.

    `place` is the placement that it shares with a learner (see `cluster.SharedPlaces`).
    """
    options: dict[str, Any] = {
        "resources": {"sampler": 1},
        "num_cpus": 0,
        "num_gpus": (HALF if place is not None else settings.tensor_parallel) if settings.accelerators else 0,
        "max_restarts": 0,  # a restarted engine would have no weights; the group replaces it and pushes them instead
        "max_concurrency": CALLS,
        **begun_with(engines.environment(settings)),
    }
    if place is not None:
        options["scheduling_strategy"] = place
    return ray.remote(SamplerActor).options(**options).remote(dict(files), settings)
