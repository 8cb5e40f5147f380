"""Reads rows of tensors from a folder of safetensors files, local or in storage.

A local file is opened for each tensor and closed again, because the pages of a mapped file count as memory while it is
open. From storage only the rows are requested, by byte range: nothing is written to disk, and several threads may read
at once. If a file cannot be read, the error says which model is damaged.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deepcoder_trainer.checkpoint.errors import CheckpointDamaged
from deepcoder_trainer.checkpoint.storage import ObjectStore
from deepcoder_trainer.checkpoint.transfer import retried

SUFFIX = ".safetensors"

_LENGTH_BYTES = 8
"""A file begins with this many bytes: the length of its header, which is JSON."""
_MOST_HEADER = 100_000_000
"""Largest header in bytes, a limit of the format."""
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


class Shards(Protocol):
    """The files of one model; a file is named by its path in the folder."""

    def names(self) -> list[str]:
        """Return the names of the files that hold tensors."""
        ...

    def text(self, name: str) -> bytes:
        """Return the content of a small file. Raises `CheckpointDamaged` if it does not exist."""
        ...

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a file's tensors without reading them."""
        ...

    def rows(self, name: str, tensor: str, start: int, stop: int) -> Tensor:
        """Return some rows of a tensor."""
        ...


class Folder:
    """Files in a local folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        """See `Shards`."""
        return sorted(path.name for path in self._path.glob(f"*{SUFFIX}"))

    def text(self, name: str) -> bytes:
        """See `Shards`."""
        try:
            return (self._path / name).read_bytes()
        except OSError as error:
            raise CheckpointDamaged(f"{self._path / name} cannot be read: {error}") from error

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """See `Shards`."""
        with _opened(self._path / name) as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  no mapping

    def rows(self, name: str, tensor: str, start: int, stop: int) -> Tensor:
        """See `Shards`."""
        with _opened(self._path / name) as file:
            found: Tensor = file.get_slice(tensor)[start:stop].clone()
            return found


class StoredFolder:
    """Files below a store's root. SHA-256 is not checked, because that needs whole files."""

    def __init__(self, store: ObjectStore, sizes: Mapping[str, int]) -> None:
        """`sizes` maps each file that may be read to its size in bytes, from the manifest."""
        self._store = store
        self._sizes = sizes
        self._headers: dict[str, tuple[dict[str, Any], int]] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """See `Shards`."""
        return sorted(name for name in self._sizes if name.endswith(SUFFIX))

    def text(self, name: str) -> bytes:
        """See `Shards`."""
        return self._range(name, 0, self._size(name))

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """See `Shards`."""
        return {key: tuple(entry["shape"]) for key, entry in self._header(name)[0].items()}

    def rows(self, name: str, tensor: str, start: int, stop: int) -> Tensor:
        """See `Shards`."""
        tensors, begin = self._header(name)
        if (entry := tensors.get(tensor)) is None:
            raise CheckpointDamaged(f"{self._store.uri}/{name} has no {tensor}")
        dtype, (first, *others) = _DTYPES[entry["dtype"]], entry["shape"]
        row, stop = math.prod(others) * dtype.itemsize, min(stop, first)
        data = bytearray(self._range(name, begin + entry["data_offsets"][0] + start * row, (stop - start) * row))
        return torch.frombuffer(data, dtype=dtype).reshape(stop - start, *others)

    def _header(self, name: str) -> tuple[dict[str, Any], int]:
        """Return a file's tensors, and the offset of the first tensor's first byte."""
        with self._lock:
            if name not in self._headers:
                self._headers[name] = self._read_header(name)
            return self._headers[name]

    def _read_header(self, name: str) -> tuple[dict[str, Any], int]:
        size = self._size(name)
        length = int.from_bytes(self._range(name, 0, _LENGTH_BYTES), "little") if size >= _LENGTH_BYTES else size
        begin = _LENGTH_BYTES + length
        try:
            if length > min(_MOST_HEADER, size - _LENGTH_BYTES):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            tensors = json.loads(self._range(name, _LENGTH_BYTES, length))
            tensors.pop("__metadata__", None)
            for tensor, entry in tensors.items():
                (low, high), shape = entry["data_offsets"], entry["shape"]
                numbers = bool(shape) and all(type(n) is int and n >= 0 for n in (low, high, *shape))
                if (
                    not numbers
                    or high > size - begin
                    or high - low != math.prod(shape) * _DTYPES[entry["dtype"]].itemsize
                ):
                    raise ValueError(f"{tensor} is not where its header says")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointDamaged(f"{self._store.uri}/{name} cannot be read: {error}") from error
        return tensors, begin

    def _range(self, name: str, start: int, size: int) -> bytes:
        return retried(partial(self._store.get_range, name, start, size), f"reading of {name}")

    def _size(self, name: str) -> int:
        try:
            return self._sizes[name]
        except KeyError as error:
            raise CheckpointDamaged(f"{self._store.uri} has no {name} by its manifest") from error


class _opened:
    """Open a safetensors file. Raises `CheckpointDamaged`, which names it, if it cannot be read."""

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
