"""A model's weights by name, one at a time: of a Hugging Face folder, or of a checkpoint's shards.

A file is opened for each tensor and closed again, since pages of a mapped file count as memory for as long as it is
open. So whoever goes over a model holds one tensor of it. Names are Hugging Face's; a tied head has none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deepcoder_trainer.checkpoint.errors import CheckpointDamaged
from deepcoder_trainer.learner.wire import METADATA

SCALE = "_scale"
"""What the name of a quantized weight's scale ends in, after the weight's own."""

_MODEL = "model."
"""What a checkpoint puts before the names of weights, beside `optimizer.`."""


class Tensors(Protocol):
    """Weights by name."""

    def names(self) -> list[str]:
        """Names of all weights, in the order in which they are stored."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading the weight."""
        ...

    def get(self, name: str) -> Tensor:
        """The weight, whole, in its own number format."""
        ...

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of a weight."""
        ...


class PretrainedTensors:
    """Of a folder in Hugging Face layout. A weight in FP8 comes back multiplied by its scale, in float32."""

    def __init__(self, directory: Path) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Path] = {}
        for path in sorted(directory.glob("*.safetensors")):
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118  a safetensors handle, not a mapping
                    self._files[name] = path
                    self._shapes[name] = tuple(file.get_slice(name).get_shape())
        if not self._files:
            raise CheckpointDamaged(f"{directory} holds no *.safetensors file")

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
        value = self._read(name, start, stop)
        if value.dtype is torch.float8_e4m3fn:
            return value.to(torch.float32) * self._read(name + SCALE, start, stop).to(torch.float32)
        return value

    def _read(self, name: str, start: int, stop: int) -> Tensor:
        with _opened(self._files[name]) as file:
            return file.get_slice(name)[start:stop].clone()


class CheckpointTensors:
    """Of a checkpoint's `learner/` folder: the weights that were trained, in float32, put together from all shards."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        path = directory / METADATA
        try:
            tensors = json.loads(path.read_text())["tensors"]
            self._entries: dict[str, Any] = {
                name.removeprefix(_MODEL): entry for name, entry in tensors.items() if name.startswith(_MODEL)
            }
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointDamaged(f"{path} cannot be read: {error}") from error

    @staticmethod
    def files(metadata: bytes) -> list[str]:
        """Names of the files that hold weights, not the optimizer's state alone; `metadata` is their description."""
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
        whole = torch.empty(stop - start, *entry["size"][1:], dtype=dtype)
        for chunk in entry["chunks"]:
            first, *others = zip(chunk["offsets"], chunk["sizes"], strict=True)
            low, high = max(start, first[0]), min(stop, sum(first))
            if low >= high:
                continue
            target = whole[low - start : high - start]
            for dim, (offset, size) in enumerate(others, start=1):
                target = target.narrow(dim, offset, size)
            with _opened(self._directory / chunk["file"]) as file:
                target.copy_(file.get_slice(chunk["key"])[low - first[0] : high - first[0]])
        return whole


def in_dtype(tensors: Tensors, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """All weights, one after another, in another number format."""
    for name in tensors.names():
        yield name, tensors.get(name).to(dtype)


class _opened:
    """A safetensors file; what cannot be read is a damaged model, by name."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Any:
        try:
            self._file = safe_open(self._path, framework="pt")
            return self._file.__enter__()
        except (OSError, SafetensorError) as error:
            raise CheckpointDamaged(f"{self._path} cannot be read: {error}") from error

    def __exit__(self, *exc: Any) -> None:
        self._file.__exit__(*exc)
