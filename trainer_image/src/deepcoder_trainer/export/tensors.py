"""A model's weights by name, one at a time: from a Hugging Face folder, or from a checkpoint's shards.

A caller that iterates over a model holds one tensor at a time, wherever the files are (`shards`). Names are those of
Hugging Face; a tied head has none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from deepcoder_trainer.checkpoint.errors import CheckpointDamaged
from deepcoder_trainer.export.shards import Shards
from deepcoder_trainer.learner.rank_settings import METADATA

SCALE = "_scale"
"""Suffix of the name of a quantized weight's scale, after the weight's name."""

_MODEL = "model."
"""Prefix of weights' names in a checkpoint; the other one is `optimizer.`."""


class Tensors(Protocol):
    """Weights by name."""

    def names(self) -> list[str]:
        """Return the names of all weights, in stored order."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a weight's shape without reading it."""
        ...

    def get(self, name: str) -> Tensor:
        """Return the whole weight in its own number format."""
        ...

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return some rows of a weight."""
        ...


class PretrainedTensors:
    """Weights of a folder in Hugging Face layout. A weight in FP8 is returned dequantized, in float32."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, str] = {}
        for file in shards.names():
            shapes = shards.shapes(file)
            self._shapes |= shapes
            self._files |= dict.fromkeys(shapes, file)
        if not self._files:
            raise CheckpointDamaged("the model has no *.safetensors file with weights")

    def places(self) -> dict[str, str]:
        """Return each weight's file."""
        return dict(self._files)

    def names(self) -> list[str]:
        """See `Tensors`."""
        return [n for n in self._files if not n.endswith((".weight" + SCALE, "rotary_emb.inv_freq"))]

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Tensors`."""
        return self._shapes[name]

    def get(self, name: str) -> Tensor:
        """See `Tensors`."""
        return self.rows(name, 0, self._shapes[name][0])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """See `Tensors`."""
        value = self._shards.rows(self._files[name], name, start, stop)
        if value.dtype is torch.float8_e4m3fn:
            scale = self._shards.rows(self._files[name + SCALE], name + SCALE, start, stop)
            return value.to(torch.float32) * scale.to(torch.float32)
        return value


class RoundedTensors:
    """Another model's weights, rounded to a number format as they are read."""

    def __init__(self, tensors: Tensors, dtype: torch.dtype) -> None:
        self._tensors = tensors
        self._dtype = dtype

    def names(self) -> list[str]:
        """See `Tensors`."""
        return self._tensors.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Tensors`."""
        return self._tensors.shape(name)

    def get(self, name: str) -> Tensor:
        """See `Tensors`."""
        return self._tensors.get(name).to(self._dtype)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """See `Tensors`."""
        return self._tensors.rows(name, start, stop).to(self._dtype)


class CheckpointTensors:
    """The trained weights of a checkpoint's `learner/` folder, in float32, assembled from all shards."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        try:
            tensors = json.loads(shards.text(METADATA))["tensors"]
            self._entries: dict[str, Any] = {
                name.removeprefix(_MODEL): entry for name, entry in tensors.items() if name.startswith(_MODEL)
            }
        except (ValueError, KeyError) as error:
            raise CheckpointDamaged(f"{METADATA} of the checkpoint cannot be read: {error}") from error

    @staticmethod
    def files(metadata: bytes) -> list[str]:
        """Return the names of the files with weights, without files that hold optimizer state only, from `metadata`."""
        tensors = json.loads(metadata)["tensors"]
        return sorted({c["file"] for name, e in tensors.items() if name.startswith(_MODEL) for c in e["chunks"]})

    def names(self) -> list[str]:
        """See `Tensors`."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Tensors`."""
        return tuple(self._entries[name]["size"])

    def get(self, name: str) -> Tensor:
        """See `Tensors`."""
        return self.rows(name, 0, self.shape(name)[0])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """See `Tensors`."""
        entry = self._entries[name]
        dtype = getattr(torch, entry["dtype"].removeprefix("torch."))
        # Zeros, because chunks may overlap: no uninitialised memory may get into a model.
        whole, found = torch.zeros(stop - start, *entry["size"][1:], dtype=dtype), 0
        for chunk in entry["chunks"]:
            first, *others = zip(chunk["offsets"], chunk["sizes"], strict=True)
            low, high = max(start, first[0]), min(stop, sum(first))
            if low >= high:
                continue
            target = whole[low - start : high - start]
            for dim, (offset, size) in enumerate(others, start=1):
                target = target.narrow(dim, offset, size)
            target.copy_(self._shards.rows(chunk["file"], chunk["key"], low - first[0], high - first[0]))
            found += target.numel()
        if found < whole.numel():
            raise CheckpointDamaged(
                f"{name} of the checkpoint is not whole: its files hold {found} numbers of {whole.numel()}"
            )
        return whole


def in_dtype(tensors: Tensors, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield all weights in another number format."""
    for name in tensors.names():
        yield name, tensors.get(name).to(dtype)
