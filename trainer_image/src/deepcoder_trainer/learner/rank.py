"""One learner rank: model shard, optimizer, and the arithmetic of a training step.

This module does not use Ray: an actor wraps the rank, and tests call it directly. Without a process group, a rank is
the whole learner. Otherwise every method marked *collective* must be called on all ranks, in the same order. If a
gradient is not finite, all ranks skip that optimizer step, so that it cannot destroy the weights.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore, Store
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.tensor import DTensor

from deepcoder_contracts.model_shape import ModelShape
from deepcoder_contracts.recipe import Precision
from deepcoder_trainer.checkpoint.errors import CheckpointDamaged
from deepcoder_trainer.cpus import compute_threads
from deepcoder_trainer.grpo.attention import Segments
from deepcoder_trainer.grpo.loss import LossSettings, policy_loss
from deepcoder_trainer.grpo.pack import MicroBatch, OptimizerStep
from deepcoder_trainer.learner.dcp import SafetensorsReader, files_of
from deepcoder_trainer.learner.mesh import build_meshes
from deepcoder_trainer.learner.meter import Meter
from deepcoder_trainer.learner.model import COMPUTE_DTYPES, PolicyModel, load_policy
from deepcoder_trainer.learner.optimizer import adamw, reset
from deepcoder_trainer.learner.parking import Parking
from deepcoder_trainer.learner.rank_settings import LEARNER_DIR, RankSettings, Sums
from deepcoder_trainer.learner.reference import give_back_memory, load_reference
from deepcoder_trainer.learner.saves import Save, Saves
from deepcoder_trainer.learner.weight_sender import WeightSender
from deepcoder_trainer.learner.weights import in_one_buffer, padded, shared_on_card
from deepcoder_trainer.seeds import seed
from deepcoder_trainer.types import CardWeights, TensorShape

T = TypeVar("T")

log = logging.getLogger(__name__)

# A single rank without a process group is intended, but DCP warns about it at every save and load.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class LearnerRank:
    """Rank `rank` of `world` learner ranks."""

    def __init__(self, settings: RankSettings, rank: int, world: int, store: Store | None = None) -> None:
        """Collective. Join the other ranks through `store`, and load the model. One rank needs no `store`."""
        self.settings = settings
        self.recipe = settings.recipe
        self._rank, self._world = rank, world
        self._device = torch.device("cuda", 0) if settings.accelerators else torch.device("cpu")
        torch.set_num_threads(compute_threads(settings.recipe.deterministic, settings.threads))
        torch.manual_seed(seed(settings.run_seed, "learner", rank))
        if settings.recipe.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        sharded = world > 1 or settings.recipe.precision is not Precision.FLOAT32
        self._save_group: dist.ProcessGroup | None = None
        if sharded:
            self._join(store)
        timeout = timedelta(seconds=settings.collective_timeout_s)
        meshes = build_meshes(self._device.type, world, settings.recipe.sequence_parallel, timeout)
        self.policy: PolicyModel = load_policy(
            Path(settings.model_dir),
            self._device,
            settings.recipe.precision,
            meshes=meshes,
            recompute=settings.accelerators,
            offload=settings.recipe.activation_offload,
            rope=settings.rope,
        )
        self._reference: PolicyModel | None = None
        if settings.recipe.kl_coefficient:
            self._reference = load_reference(
                Path(settings.model_dir), self._device, settings.recipe.precision, meshes, settings.rope
            )
        shape = ModelShape.of(self.policy.config.to_dict())
        self._meter = Meter(self._device, shape, settings.recipe.sequence_parallel)
        self._optimizer = adamw(self.policy, settings.recipe)
        self._loss_settings = LossSettings.of(settings.recipe)
        self._parking = Parking(self._held)
        self._shared: Tensor | None = None
        """Buffer with the weights for a sampler on this GPU."""
        self._saves = Saves(rank, world)

    def train(self, steps: Sequence[OptimizerStep]) -> Sums:
        """Collective. Run one training step: this rank's share of each optimizer step, in order. Return its sums."""
        self._refuse_parked()
        self._meter.begin()
        totals: dict[str, Tensor] = {}
        old = self._passes(self.policy, steps) if self._loss_settings.recompute else None
        reference = self._reference_logprobs(steps)
        self._meter.lap("recompute")
        norms, skipped = [], 0
        for i, step in enumerate(steps):
            self._optimizer.zero_grad(set_to_none=True)
            self.accumulate(step, totals, _nth(old, i), _nth(reference, i))
            norm = self._clip()
            self._meter.lap("forward_backward")
            if not step.denominator:
                continue
            if math.isfinite(norm):
                self._optimizer.step()
                norms.append(norm)
            else:
                skipped += 1
                log.warning("gradient norm is %s: optimizer step %d of %d skipped", norm, i + 1, len(steps))
            self._meter.lap("optimizer")
        self._optimizer.zero_grad(set_to_none=True)
        # These are the same on every rank, so they are not summed over ranks (`summary.AGREED`).
        agreed = {
            "grad_norm": [sum(norms) / len(norms) if norms else 0.0],
            "grad_norm_max": [max(norms, default=0.0)],
            "skipped_optimizer_steps": [float(skipped)],
        }
        return _on_host(totals) | agreed | self._meter.read()

    def accumulate(
        self,
        step: OptimizerStep,
        totals: dict[str, Tensor],
        old: Sequence[Tensor] | None = None,
        reference: Sequence[Tensor] | None = None,
    ) -> None:
        """Collective. Accumulate the gradient of one optimizer step, and add its sums to `totals`, on the device.

        `old` and `reference` hold, for each micro-batch, [R] log-probabilities recomputed by the learner and those of
        the reference model. Without `old`, the ratio is relative to the sampler's log-probabilities. A micro-batch
        without trainable tokens runs too, because the other ranks wait for this one in collectives.
        """
        for i, micro_batch in enumerate(step.micro_batches):
            sums = self._backward(micro_batch, _nth(old, i), _nth(reference, i), step.denominator)
            for name, value in sums.items():
                value = value.double()  # float32 would lose small sums over many micro-batches
                totals[name] = totals[name] + value if name in totals else value

    def logprobs(self, micro_batch: MicroBatch) -> np.ndarray[Any, Any]:
        """Collective. Return [R] log-probabilities of the response tokens under the current weights."""
        self._refuse_parked()
        with torch.no_grad():
            return self._forward(micro_batch, entropy=False)[0].cpu().numpy()

    def gaps(self, step: OptimizerStep) -> list[float]:
        """Collective. Return, per response token of this rank, the learner's log-probability minus the sampler's.

        A gap is infinite where the sampler gave no finite log-probability.
        """
        gaps: list[float] = []
        for m in step.micro_batches:
            gaps += np.where(m.mask, self.logprobs(m) - m.behaviour, np.inf).tolist()
        give_back_memory(self.policy)
        return gaps

    def weights(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """Collective. Yield every parameter once, unsharded, on the CPU of rank 0, in `dtype` (default: compute dtype).

        Other ranks get empty tensors and must exhaust the iterator too. Each value is a copy, because a numpy view
        would make the storage of a live parameter non-resizable, so it could not be parked.
        """
        for name, value in self._whole(dtype or COMPUTE_DTYPES[self.recipe.precision]):
            yield name, value.to("cpu", copy=True) if self._rank == 0 else torch.empty(0)

    def share_weights(self) -> CardWeights:
        """Collective. Gather all weights into a buffer on this rank's GPU, for a sampler there. `park` frees it."""
        dtype = COMPUTE_DTYPES[self.recipe.precision]
        total = padded(p.numel() * dtype.itemsize for p in self.policy.parameters())
        self._shared, placed = in_one_buffer(self._whole(dtype), total, self._device)
        return shared_on_card(self._shared, placed)

    def shapes(self) -> list[TensorShape]:
        """Return every parameter's name and unsharded shape, in the order in which they are sent."""
        return [(name, tuple(parameter.shape)) for name, parameter in self.policy.named_parameters()]

    def send_weights(self, sender: WeightSender | None, receivers: Sequence[str]) -> list[str]:
        """Collective. Send all weights to these samplers from rank 0, which has the `sender`. Return those lost."""
        dtype = COMPUTE_DTYPES[self.recipe.precision]
        if sender is not None:
            return sender.send(receivers, self._whole(dtype), dtype)
        for _ in self._whole(dtype):
            pass
        return []

    def park(self) -> None:
        """Release the device's memory to a sampler. Methods that need the weights raise an error until `unpark`."""
        if self._shared is not None:
            self._shared = None
            torch.cuda.ipc_collect()
        self._parking.park()

    def unpark(self) -> None:
        """Take back the device's memory and restore its contents bit for bit."""
        self._parking.unpark()

    def _whole(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Collective. Yield every parameter, unsharded, on the device."""
        self._refuse_parked()
        for name, parameter in self.policy.named_parameters():
            value = parameter.detach().to(dtype)  # cast before gathering: fewer bytes to send, the same result
            yield name, value.full_tensor() if isinstance(value, DTensor) else value

    def save(self, directory: Path) -> None:
        """Collective. Copy the state to the CPU and write it below `directory`/learner in the background.

        Waits for the previous save if it is still being written.
        """
        self._refuse_parked()
        self._saves.begin(directory, self._state(optimizer=True), self._save_group)

    def saved(self, directory: Path) -> Save:
        """Return the save into `directory`. The caller takes it over, with its files."""
        return self._saves.take(directory)

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        return self._device

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes everything that is written only once."""
        return self._rank == 0

    def files_to_load(self, directory: Path) -> list[str]:
        """Return the names of the files below `directory`/learner that hold this rank's part.

        Only their metadata must be there. Raises `CheckpointDamaged` if it is unreadable or of another model.
        """
        return files_of(directory / LEARNER_DIR, self._state(optimizer=True))

    def load(self, directory: Path, *, optimizer: bool) -> None:
        """Collective. Load the files of `save`, at any world size. Without `optimizer`, its state starts at zero.

        Raises `CheckpointDamaged` for unreadable files; the weights are then unusable.
        """
        self._refuse_parked()
        try:
            dcp_load(
                self._state(optimizer=optimizer),
                storage_reader=SafetensorsReader(directory / LEARNER_DIR),
                no_dist=self._world == 1,
            )
        except CheckpointException as e:
            for cause, _ in e.failures.values():
                if isinstance(cause, CheckpointDamaged):
                    raise cause from e
            raise
        if not optimizer:
            reset(self._optimizer)

    def close(self) -> None:
        """Leave the process group."""
        self._saves.wait()
        if self._save_group is not None:
            self._save_group = None
            dist.destroy_process_group()

    def _join(self, store: Store | None) -> None:
        timeout = timedelta(seconds=self.settings.collective_timeout_s)
        backend = "cpu:gloo,cuda:nccl" if self.settings.accelerators else "gloo"
        if store is None:
            if self._world > 1:
                raise ValueError(f"{self._world} ranks need a store to meet in")
            store = HashStore()
        dist.init_process_group(backend, store=store, rank=self._rank, world_size=self._world, timeout=timeout)
        # A save communicates between ranks during training, so it needs its own group.
        self._save_group = dist.new_group(backend="gloo", timeout=timeout)

    def _reference_logprobs(self, steps: Sequence[OptimizerStep]) -> list[list[Tensor]] | None:
        """Return log-probabilities under the reference model, or None without a KL penalty."""
        if self._reference is None:
            return None
        logprobs = self._passes(self._reference, steps)
        give_back_memory(self._reference)
        return logprobs

    def _passes(self, policy: PolicyModel, steps: Sequence[OptimizerStep]) -> list[list[Tensor]]:
        """Return log-probabilities, [R] per micro-batch, under the weights before this step's first update."""
        with torch.no_grad():
            return [[self._forward(m, policy, entropy=False)[0] for m in step.micro_batches] for step in steps]

    def _forward(
        self, m: MicroBatch, policy: PolicyModel | None = None, *, entropy: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        policy = policy or self.policy
        logprob, nats = policy(
            self._tensor(m.input_ids).long(),
            self._tensor(m.position_ids).long(),
            Segments.of(m.cu_seqlens, self._device),
            self._tensor(m.response_index).long(),
            self._tensor(m.targets).long(),
            self.recipe.temperature,
            entropy=entropy,
        )
        return logprob, nats

    def _backward(
        self, m: MicroBatch, old: Tensor | None, reference: Tensor | None, denominator: int
    ) -> dict[str, Tensor]:
        self._meter.count(m)
        logprob, entropy = self._forward(m)
        assert entropy is not None
        behaviour = self._tensor(m.behaviour)
        loss, sums = policy_loss(
            logprob,
            entropy,
            behaviour if old is None else old,
            behaviour,
            self._tensor(m.advantages),
            self._tensor(m.mask),
            self._loss_settings,
            reference,
        )
        # FSDP averages gradients over ranks, but the loss is a sum over all ranks.
        (loss * (self._world / max(denominator, 1))).backward()
        return sums

    def _clip(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.recipe.grad_clip)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def _tensor(self, array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(np.array(array)).to(self._device)

    def _refuse_parked(self) -> None:
        if self._parking.parked:
            raise RuntimeError("the learner is parked: a sampler has its device's memory")

    def _held(self) -> list[Tensor]:
        """Return all tensors that stay on the device between two steps."""
        reference = [] if self._reference is None else [p.detach() for p in self._reference.parameters()]
        return [*self._state(optimizer=True).values(), *reference]

    def _state(self, *, optimizer: bool) -> dict[str, Tensor]:
        """Return model and optimizer state as tensors by name; a checkpoint stores nothing else."""
        state: dict[str, Tensor] = {}
        for name, parameter in self.policy.named_parameters():
            state[f"model.{name}"] = parameter.detach()
            if optimizer:
                for key, value in self._optimizer.state[parameter].items():
                    state[f"optimizer.{name}.{key}"] = value
        return state


def _nth(values: Sequence[T] | None, i: int) -> T | None:
    return None if values is None else values[i]


def _on_host(totals: dict[str, Tensor]) -> Sums:
    """Return sums as plain numbers, with a single copy from the device, which synchronizes with it."""
    if not totals:
        return {}
    flat = iter(torch.cat([value.reshape(-1) for value in totals.values()]).tolist())
    return {name: [next(flat) for _ in range(value.numel())] for name, value in totals.items()}
