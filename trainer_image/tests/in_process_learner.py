"""A learner of one rank in the process of the tests: what its group, its actors and Ray add is left out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from deepcoder_contracts.manifest import FileEntry, Manifest
from deepcoder_contracts.stage import Storage
from deepcoder_trainer.types import Batch, WeightRefs

T = TypeVar("T")


class InProcessLearner:
    """The Learner protocol over one real `LearnerRank` in this process: Ray and nothing else is left out."""

    def __init__(self, rank: Any, capacity: int = 64) -> None:
        from deepcoder_trainer.learner.files import RankFiles

        self.rank = rank
        self.capacity = capacity
        self.files = RankFiles(rank)
        self.threads = (1,)

    async def train(self, batch: Batch) -> dict[str, float]:
        from deepcoder_trainer.learner.group import combine, plan_batch

        [plan] = plan_batch(batch, self.rank.recipe, self.capacity, 1)
        return combine([self.rank.train(plan)])

    async def export_weights(self) -> WeightRefs:
        from deepcoder_trainer.learner.weights import weight_chunks

        # Small chunks, so that several make up the weights.
        return WeightRefs(
            tuple(weight_chunks(self.rank.weights(), 40_000)),
            "float32" if self.rank.recipe.precision == "Float32" else "bfloat16",
        )

    async def gaps(self, batch: Batch) -> list[float]:
        from deepcoder_trainer.learner.group import plan_batch

        whole = self.rank.recipe.model_copy(update={"optimizer_steps": 1})
        [[step]] = plan_batch(batch, whole, self.capacity, 1)
        return self.rank.gaps(step)

    async def park(self) -> None:
        self.rank.park()

    async def unpark(self) -> None:
        self.rank.unpark()

    async def save(self, directory: str) -> None:
        self.rank.save(Path(directory))

    async def upload(self, directory: str, storage: Storage, prefix: str) -> list[FileEntry]:
        return await asyncio.to_thread(self.files.upload, directory, storage, prefix)

    async def download(self, directory: str, storage: Storage, prefix: str, manifest: Manifest) -> None:
        await asyncio.to_thread(self.files.download, directory, storage, prefix, manifest)

    async def load(self, directory: str, *, optimizer: bool) -> None:
        self.rank.load(Path(directory), optimizer=optimizer)

    async def save_pretrained(self, directory: str) -> None:
        self.files.save_pretrained(directory)

    async def beside(self, work: Callable[[Path], T]) -> T:
        return await asyncio.to_thread(work, Path(self.rank.settings.model_dir))

    async def close(self) -> None:
        self.rank.close()
