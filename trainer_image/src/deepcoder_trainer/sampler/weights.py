"""Loads new weights into a live vLLM engine, through vLLM's own weight-transfer API.

The learner's weights arrive as object-store references to named chunks. The sampler actor resolves one chunk at a time,
writes it as a safetensors file to shared memory, and passes the path to the engine. The engine's worker (in this
process on CPUs, in separate processes on GPUs) maps the file and loads it. So at most one chunk is in memory besides
the model, and the same code serves one process and several.

If learner and sampler share a GPU, the learner gathers its weights there, and each worker opens the buffer on its own
GPU through a CUDA IPC handle, without a copy through the host. vLLM's backend for that sends pickles to its workers;
here the handle is sent as plain values.

If they have separate GPUs, the learner's first rank sends the weights from GPU to GPU. The workers join it in an NCCL
group (see `broadcast`), and receive one bucket of tensors at a time.

The worker side runs between vLLM's layer-wise reload hooks. On CPUs vLLM repacks weights after loading, and loading
into a live model without those hooks fails or, worse, fails silently. An update that fails half-way leaves the engine
without usable weights: the error is raised, the actor dies, and its requests move to other samplers.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch._C._distributed_c10d import TCPStore
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.utils.nccl import unpinned_nccl_env

from deepcoder_trainer.broadcast import RECEIVE_SECONDS, BroadcastGroup, buckets, placed
from deepcoder_trainer.types import TensorShape

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  the kernel's shared memory, names below it are random


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Empty: this backend needs no initialization."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """One chunk, or all weights at once."""

    path: str = ""
    """A safetensors file that the worker can read."""

    cards: dict[str, Any] | None = None
    """Instead of a path: GPU UUID to (handle, tensors) of the buffer there (see `CardWeights`)."""

    broadcast: dict[str, Any] | None = None
    """Instead of a path: fields of `BroadcastWeights`, and the dtype in which the learner sends."""


class SharedFileWeightTransfer(WeightTransferEngine[InitInfo, UpdateInfo]):
    """The worker side: loads tensors with Hugging Face names into the live model."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    _mapped: torch.Tensor | None = None
    """The learner's buffer, until the update is finished."""
    _group: BroadcastGroup | None = None
    """The broadcast group with learner rank 0."""

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Do nothing: the group is joined at the first broadcast."""

    def start_weight_update(self) -> None:
        """Put the model's layers back into the layout that loading expects."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        # vLLM warns at each update about every layer without its own tensor (rotary tables, tied heads).
        logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Load the tensors of one update. vLLM shards, fuses and casts each of them as it does at start."""
        if update_info.broadcast is not None:
            self._receive(**update_info.broadcast)
            return
        if update_info.cards is None:
            self.model.load_weights(list(_tensors(update_info.path)))
            return
        card = card_of(self.device)
        if card not in update_info.cards:
            raise ValueError(f"no learner has its weights on this sampler's card {card}, but on {[*update_info.cards]}")
        handle, tensors = update_info.cards[card]
        self._mapped = open_buffer(self.device, handle)
        self.model.load_weights([(tensor[0], placed(self._mapped, *tensor[1:])) for tensor in tensors])

    def _receive(self, host: str, port: int, receiver: str, tensors: Sequence[TensorShape], dtype: str) -> None:
        """Receive and load all weights, bucket by bucket. Raises `GroupLost` if the learner does not send in time."""
        if self._group is None:
            store = TCPStore(host, port, None, is_master=False, timeout=timedelta(seconds=RECEIVE_SECONDS))
            rank, size = 1 + self.parallel_config.rank, 1 + self.parallel_config.world_size
            # For batch invariance, vLLM sets NCCL variables in its workers that the learner does not have. NCCL does
            # not reconcile them between ranks: a communicator of both would hang.
            with unpinned_nccl_env():
                self._group = BroadcastGroup(store, receiver, rank, size, self.device)
                self._group.connect()
        for size, bucket in buckets(tensors, getattr(torch, dtype)):
            # Incomplete layers keep references to loaded tensors, so no buffer is reused.
            buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
            self._group.finish(self._group.begin(buffer))
            self.model.load_weights([(tensor[0], placed(buffer, *tensor[1:])) for tensor in bucket])

    def finish_weight_update(self) -> None:
        """Convert the loaded tensors to the layout that the kernels use (repacking on CPUs)."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        self._repack_tied_head()
        if self._mapped is not None:  # the learner frees the buffer after this
            if self._mapped.is_cuda:
                torch.cuda.synchronize(self.device)
            self._mapped = None

    def _repack_tied_head(self) -> None:
        """Repack a head that is tied to the embedding.

        The reload skips it, because it receives no tensor of its own. On CPUs its packed copy would then keep the
        previous weights, and the head of one model would be applied to the hidden states of another.
        """
        head = getattr(self.model, "lm_head", None)
        if head is not None and getattr(self.model_config.hf_config, "tie_word_embeddings", False):
            head.quant_method.process_weights_after_loading(head)

    def shutdown(self) -> None:
        """Leave the broadcast group."""
        if self._group is not None:
            self._group.close()


def card_of(device: torch.device) -> str:
    """Return the UUID of a worker's GPU, which does not depend on its number in this process."""
    return str(torch.cuda.get_device_properties(device).uuid)


def open_buffer(device: torch.device, handle: Sequence[Any]) -> torch.Tensor:
    """Open the buffer, [n] uint8, that another process shares on this GPU."""
    _, *rest = handle  # the first entry is the GPU's number in the other process
    storage = torch.UntypedStorage._new_shared_cuda(device.index or 0, *rest)
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)


def _tensors(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  a safetensors handle, not a mapping
            yield name, file.get_tensor(name)


@contextmanager
def shared_chunk(chunk: Mapping[str, Any], dtype: str) -> Iterator[str]:
    """Write a chunk of numpy arrays to a safetensors file in shared memory, yield its path, and remove it afterwards.

    bfloat16 arrives as uint16, because numpy has no bfloat16.
    """
    target = getattr(torch, dtype)
    tensors = {
        name: tensor.view(target) if target is torch.bfloat16 and tensor.dtype is torch.uint16 else tensor
        for name, tensor in ((name, torch.from_numpy(_writable(array))) for name, array in chunk.items())
    }
    directory = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
    with tempfile.NamedTemporaryFile(prefix="deepcoder-", suffix=".safetensors", dir=directory) as file:
        save_file(tensors, file.name)
        yield file.name


def _writable(array: Any) -> Any:
    """Return the array, or a copy if it is read-only, as in the object store: torch warns about read-only arrays."""
    if array.flags.writeable:
        return array
    return array.copy()
