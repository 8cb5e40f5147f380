"""A learner rank as a Ray actor: the code that runs where the model is.

Compute methods run one at a time, in call order, as collectives require. Uploads and downloads have their own thread
(concurrency group `io`), so that a checkpoint is uploaded while the next step trains. Another thread (`where`) reports
where the others are. Files are uploaded from this machine; no part of a checkpoint passes through the controller. Only
the actor imports what needs torch. The driver, which imports this module for the class, does not.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ray

from deepcoder_contracts.manifest import FileEntry, Manifest
from deepcoder_contracts.stage import ModelSource, Storage
from deepcoder_trainer.checkpoint.sources import Sources
from deepcoder_trainer.checkpoint.storage import TRAFFIC
from deepcoder_trainer.grpo.pack import OptimizerStep
from deepcoder_trainer.heavy_imports import heavy_imports
from deepcoder_trainer.learner.rank_settings import RankSettings, Rendezvous, Sums
from deepcoder_trainer.thread_stacks import ThreadStacks, records_calls, thread_stacks
from deepcoder_trainer.types import BroadcastWeights, CardWeights

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

    from deepcoder_trainer.learner.files import RankFiles
    from deepcoder_trainer.learner.rank import LearnerRank
    from deepcoder_trainer.learner.weight_sender import WeightSender

T = TypeVar("T")


@records_calls
class LearnerActor:
    """One of `world` ranks; `start` assigns its number. `ray.remote` is applied where the actor is created."""

    def __init__(self, settings: RankSettings, world: int, model: ModelSource, sources: Sources) -> None:
        logging.basicConfig(level=logging.INFO)
        self._settings = settings
        self._model, self._sources = model, sources
        self._world = world
        self._store: TCPStore | None = None
        self._learner: LearnerRank | None = None
        self._files: RankFiles | None = None
        self._sender: WeightSender | None = None
        """On rank 0, if weights are broadcast to samplers on other GPUs."""

    def machine(self) -> str:
        """Return the id of the node on which Ray has placed this rank."""
        return str(ray.get_runtime_context().get_node_id())

    def listen(self) -> Rendezvous:
        """On rank 0: listen for the other ranks, and return the address."""
        # Port 0: the store itself binds a free port, so no other process can take it in between.
        host = ray.util.get_node_ip_address()
        self._store = self._meet(host, 0, first=True)
        return Rendezvous(host, self._store.port)

    def start(self, rank: int, rendezvous: Rendezvous | None) -> int:
        """Join the other ranks and load the model, after fetching it if this machine does not have it.

        Return the number of compute threads.
        """
        with heavy_imports():
            import torch

            from deepcoder_trainer.learner.files import RankFiles
            from deepcoder_trainer.learner.rank import LearnerRank

        # A hub's folder may lack files: its cache outlives an attempt that was killed during the download.
        if self._model.uri.startswith("hf://") or not Path(self._settings.model_dir).is_dir():
            self._settings = replace(self._settings, model_dir=str(self._sources.model(self._model)))
        if self._store is None and rendezvous is not None:
            self._store = self._meet(rendezvous.host, rendezvous.port, first=False)
        self._learner = LearnerRank(self._settings, rank, self._world, self._store)
        self._files = RankFiles(self._learner)
        return torch.get_num_threads()

    def _meet(self, host: str, port: int, *, first: bool) -> TCPStore:
        with heavy_imports():
            from torch._C._distributed_c10d import TCPStore

        timeout = timedelta(seconds=self._settings.collective_timeout_s)
        return TCPStore(host, port, self._world, is_master=first, timeout=timeout, wait_for_workers=False)

    def train(self, steps: Sequence[OptimizerStep]) -> Sums:
        """See `LearnerRank.train`."""
        return self._rank_learner.train(steps)

    def export_weights(self) -> list[Any]:
        """Collective. Return object references of chunks with all weights on rank 0, and none on other ranks."""
        from deepcoder_trainer.learner.weights import weight_chunks

        weights = self._rank_learner.weights()
        if self._rank_learner.first:
            return [ray.put(chunk) for chunk in weight_chunks(weights)]
        for _ in weights:
            pass
        return []

    def share_weights(self) -> CardWeights:
        """See `LearnerRank.share_weights`."""
        return self._rank_learner.share_weights()

    def offer_weights(self) -> BroadcastWeights:
        """On rank 0: return the tensors that will be sent, and the address at which samplers join."""
        if self._sender is None:
            from deepcoder_trainer.learner.weight_sender import WeightSender

            workers, device = self._settings.recipe.tensor_parallel, self._rank_learner.device
            self._sender = WeightSender(ray.util.get_node_ip_address(), workers, device)
        return self._sender.offer(self._rank_learner.shapes())

    def send_weights(self, receivers: Sequence[str]) -> list[str]:
        """See `LearnerRank.send_weights`."""
        return self._rank_learner.send_weights(self._sender, receivers)

    def park(self) -> None:
        """See `LearnerRank.park`."""
        self._rank_learner.park()

    def unpark(self) -> None:
        """See `LearnerRank.unpark`."""
        self._rank_learner.unpark()

    def gaps(self, step: OptimizerStep) -> list[float]:
        """See `LearnerRank.gaps`."""
        return self._rank_learner.gaps(step)

    def save(self, directory: str) -> None:
        """See `LearnerRank.save`."""
        self._rank_learner.save(Path(directory))

    def save_pretrained(self, directory: str) -> None:
        """See `RankFiles.save_pretrained`."""
        self._rank_files.save_pretrained(directory)

    @ray.method(concurrency_group="io")
    def upload(self, directory: str, storage: Storage, prefix: str) -> list[FileEntry]:
        """See `RankFiles.upload`."""
        return self._rank_files.upload(directory, storage, prefix)

    @ray.method(concurrency_group="io")
    def download(self, directory: str, storage: Storage, prefix: str, manifest: Manifest) -> None:
        """See `RankFiles.download`."""
        self._rank_files.download(directory, storage, prefix, manifest)

    @ray.method(concurrency_group="io")
    def beside(self, work: Callable[[Path], T]) -> T:
        """See `Learner.beside`."""
        return work(Path(self._settings.model_dir))

    @ray.method(concurrency_group="where")
    def where(self) -> ThreadStacks:
        """Return where this rank is stuck, for a caller that gets no answer from another method."""
        return thread_stacks()

    @ray.method(concurrency_group="where")
    def moved(self) -> int:
        """Return the bytes that this rank has transferred, for a caller that waits for an upload or a download."""
        return TRAFFIC.bytes

    def load(self, directory: str, optimizer: bool) -> None:
        """See `LearnerRank.load`."""
        self._rank_learner.load(Path(directory), optimizer=optimizer)

    def discard(self, directory: str) -> None:
        """Remove a local folder."""
        shutil.rmtree(directory, ignore_errors=True)

    def close(self) -> None:
        """Leave the broadcast groups and the process group."""
        if self._sender is not None:
            self._sender.close()
        if self._learner is not None:
            self._learner.close()

    @property
    def _rank_learner(self) -> LearnerRank:
        if self._learner is None:
            raise RuntimeError("the learner rank was not started")
        return self._learner

    @property
    def _rank_files(self) -> RankFiles:
        if self._files is None:
            raise RuntimeError("the learner rank was not started")
        return self._files
