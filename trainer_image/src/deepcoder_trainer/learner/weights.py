"""Transfer of the learner's weights to samplers.

Through the object store, weights go in chunks that rank 0 holds, wherever the samplers are. A sampler on the learner's
own GPU needs no copy through the host: each rank gathers all weights into one buffer on its GPU, and describes it by
plain values, including a CUDA IPC handle. The buffer must stay until the sampler has loaded from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from deepcoder_trainer.types import CardWeights, PlacedTensor

CHUNK_BYTES = 256 << 20
"""Approximate size of one object in the object store, in bytes."""
_ALIGNMENT = 256


def weight_chunks(weights: Iterable[tuple[str, Tensor]], chunk_bytes: int = CHUNK_BYTES) -> Iterator[dict[str, Any]]:
    """Yield weights, which must be on the CPU, in dictionaries of numpy arrays; bfloat16 as uint16."""
    chunk: dict[str, Any] = {}
    size = 0
    for name, value in weights:
        if chunk and size + value.nbytes > chunk_bytes:
            yield chunk
            chunk, size = {}, 0
        chunk[name] = value.view(torch.int16).numpy().view("uint16") if value.dtype is torch.bfloat16 else value.numpy()
        size += value.nbytes
    if chunk:
        yield chunk


def in_one_buffer(
    weights: Iterable[tuple[str, Tensor]], total: int, device: torch.device
) -> tuple[Tensor, list[PlacedTensor]]:
    """Copy all weights into one buffer, [total] uint8 (see `padded`). Return it with the place of each weight."""
    buffer = torch.empty(total, dtype=torch.uint8, device=device)
    placed: list[PlacedTensor] = []
    count = 0
    for name, value in weights:
        end = count + value.nbytes
        buffer[count:end].copy_(value.contiguous().view(-1).view(torch.uint8))
        placed.append((name, str(value.dtype).removeprefix("torch."), tuple(value.shape), count))
        count = -(-end // _ALIGNMENT) * _ALIGNMENT
    return buffer, placed


def padded(sizes: Iterable[int]) -> int:
    """Return the size in bytes of a buffer for tensors of these sizes, each aligned."""
    return sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)


def shared_on_card(buffer: Tensor, placed: list[PlacedTensor]) -> CardWeights:
    """Return the description by which another process on the same GPU can open the buffer."""
    torch.cuda.synchronize(buffer.device)
    handle = buffer.untyped_storage()._share_cuda_()
    return CardWeights(str(torch.cuda.get_device_properties(buffer.device).uuid), tuple(handle), tuple(placed))
