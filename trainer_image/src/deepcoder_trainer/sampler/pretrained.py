"""Loads weights from a Hugging Face folder into samplers, for evaluations without a learner.

Samplers start without weights, so that one engine serves several targets and no model is loaded twice. Tensors are read
one file at a time and sent in chunks through the object store, in the engine's number format.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deepcoder_trainer.modelconfig import weight_files
from deepcoder_trainer.types import Sampler, WeightRefs

CHUNK_BYTES = 256 << 20


async def push_pretrained(sampler: Sampler, directory: Path, version: int, dtype: str) -> None:
    """Load a model's weights into all engines. `dtype` is that of the engines (`float32` or `bfloat16`).

    No request may run meanwhile. The object store has no room for two models, so the one before goes first.
    """
    sampler.release_weights()
    refs = await asyncio.to_thread(_put_chunks, directory, dtype)
    await sampler.update_weights(refs, version)


def _put_chunks(directory: Path, dtype: str) -> WeightRefs:
    import ray

    return WeightRefs(tuple(ray.put(chunk) for chunk in pretrained_chunks(directory, dtype)), dtype)


def pretrained_chunks(directory: Path, dtype: str, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Mapping[str, Any]]:
    """Yield all tensors of a folder in chunks of numpy arrays; bfloat16 as uint16. Raises BadConfig without one."""
    import torch
    from safetensors import safe_open

    target = getattr(torch, dtype)
    by_file: dict[Path, list[str]] = {}
    for name, path in weight_files(directory).items():
        by_file.setdefault(path, []).append(name)
    chunk: dict[str, Any] = {}
    size = 0
    for path, names in by_file.items():
        with safe_open(path, framework="pt") as file:
            for name in names:
                tensor = file.get_tensor(name).to(target)
                if chunk and size + tensor.nbytes > chunk_bytes:
                    yield chunk
                    chunk, size = {}, 0
                array = tensor.view(torch.int16).numpy().view("uint16") if target is torch.bfloat16 else tensor.numpy()
                chunk[name] = array
                size += tensor.nbytes
    yield chunk
