"""torch DCP with safetensors and JSON files: a checkpoint that cannot run code when it is read.

DCP's own writer pickles its metadata and tensors. This one writes each rank's shards to files
`rank-00000-000.safetensors` of at most about 1 GiB. The coordinator also writes `metadata.json`, with type and size of
each tensor, and offset and file of each chunk. DCP's planners do the rest, so a checkpoint loads at any world size.

DCP stores values that every rank holds (AdamW's step counts) once, on the rank that has least to write, and every rank
reads them from there. Such scalars get their own file of a few kilobytes, so that no rank has to fetch gigabytes of
another rank for them. A state dict with anything but tensors is refused when it is written.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.default_planner import create_default_local_load_plan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from deepcoder_trainer.checkpoint.errors import CheckpointDamaged, NewerSchema, OtherModel, refuse_newer
from deepcoder_trainer.learner.rank_settings import METADATA, rank_prefix

_FILE_BYTES = 1 << 30
_SCHEMA_VERSION = 1
_DTYPES = {str(d): d for d in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32)}


@dataclass(frozen=True)
class Place:
    """The file and the key under which a chunk is stored."""

    file: str
    key: str


class SafetensorsWriter(StorageWriter):
    """Writes one checkpoint below a directory. `files` lists the files that this rank wrote."""

    def __init__(self, directory: Path, rank: int) -> None:
        self._directory = directory
        self._rank = rank
        self.files: list[Path] = []

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Do nothing: each checkpoint has its own writer."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Create the directory."""
        self._directory.mkdir(parents=True, exist_ok=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Raise TypeError for anything that is not a tensor."""
        for item in plan.items:
            if item.type is WriteItemType.BYTE_IO:
                raise TypeError(f"{item.index.fqn} is not a tensor, and only tensors are stored")
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Change nothing: each rank names its own files."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's chunks file by file, scalars in a file of their own."""
        scalars = [item for item in plan.items if _is_scalar(item)]
        others = [item for item in plan.items if not _is_scalar(item)]
        future: Future[list[WriteResult]] = Future()
        future.set_result(self._write(others, planner) + self._write(scalars, planner))
        return future

    def _write(self, items: list[WriteItem], planner: SavePlanner) -> list[WriteResult]:
        results: list[WriteResult] = []
        pending: dict[str, Tensor] = {}
        size = 0
        for item in items:
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, Tensor)
            if pending and size + tensor.nbytes > _FILE_BYTES:
                self._flush(pending)
                pending, size = {}, 0
            key = f"{item.index.fqn}@{','.join(map(str, item.index.offset or ()))}"
            pending[key] = tensor.detach().cpu().contiguous()
            size += tensor.nbytes
            results.append(WriteResult(item.index, tensor.nbytes, Place(self._next_name(), key)))
        if pending:
            self._flush(pending)
        return results

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the metadata. DCP calls this on the coordinator only."""
        places: dict[MetadataIndex, Place] = {r.index: r.storage_data for rank in results for r in rank}
        tensors = {}
        for name, entry in metadata.state_dict_metadata.items():
            assert isinstance(entry, TensorStorageMetadata)
            chunks = []
            for chunk in entry.chunks:
                place = places[MetadataIndex(name, chunk.offsets)]
                chunks.append(
                    {
                        "offsets": list(chunk.offsets),
                        "sizes": list(chunk.sizes),
                        "file": place.file,
                        "key": place.key,
                    }
                )
            tensors[name] = {"dtype": str(entry.properties.dtype), "size": list(entry.size), "chunks": chunks}
        path = self._directory / METADATA
        path.write_text(json.dumps({"schemaVersion": _SCHEMA_VERSION, "tensors": tensors}, sort_keys=True))
        self.files.append(path)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """A local directory."""
        return "://" not in str(checkpoint_id)

    def _next_name(self) -> str:
        return rank_file(self._rank, len(self.files))

    def _flush(self, tensors: dict[str, Tensor]) -> None:
        path = self._directory / self._next_name()
        self.files.append(path)  # before writing: a file that a full disk cut short must be removed, too
        save_file(tensors, path)


class SafetensorsReader(StorageReader):
    """Reads what `SafetensorsWriter` wrote; each rank opens only the files its plan needs."""

    def __init__(self, directory: Path) -> None:
        """Read the metadata. Raises `CheckpointDamaged` for a file that the writer cannot have written."""
        self._directory = directory
        # Not in `read_metadata`: DCP would interpret a failure there as per-rank metadata, and hide it.
        self._metadata = _read_metadata(directory / METADATA)
        self._places: dict[MetadataIndex, Place] = self._metadata.storage_data

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Do nothing: each checkpoint has its own reader."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the metadata, which the constructor read."""
        return self._metadata

    def file(self, index: MetadataIndex) -> str:
        """Return the name of the file that holds a chunk."""
        return self._places[index].file

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return the plan unchanged."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans unchanged."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy the planned part of each chunk into its target. Raises `CheckpointDamaged` for an unreadable file."""
        by_file: dict[str, list[Any]] = {}
        for item in plan.items:
            by_file.setdefault(self.file(item.storage_index), []).append(item)
        for file, items in by_file.items():
            path = self._directory / file
            try:
                with safe_open(path, framework="pt") as f:
                    for item in items:
                        # safetensors' get_slice does not support scalars, and a resumption at the same world size
                        # needs whole chunks.
                        stored = f.get_tensor(self._places[item.storage_index].key)
                        for dim, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                            stored = stored.narrow(dim, offset, length)
                        target = planner.resolve_tensor(item)
                        target.detach().copy_(stored)
                        planner.commit_tensor(item, target)
            except (OSError, SafetensorError) as e:
                raise CheckpointDamaged(f"{path} cannot be read: {e}") from e
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """A local directory."""
        return "://" not in str(checkpoint_id)


def files_of(directory: Path, state: dict[str, Tensor]) -> list[str]:
    """Return the names of the files below `directory` that a load into `state` reads. Only the metadata must be there.

    Raises `CheckpointDamaged` for unreadable metadata, and `OtherModel` if it does not list exactly the tensors of
    `state`: DCP itself would load a part of a larger model.
    """
    reader = SafetensorsReader(directory)
    metadata = reader.read_metadata()
    try:
        plan = create_default_local_load_plan(state, metadata)
    except (RuntimeError, ValueError) as e:
        raise OtherModel(f"{METADATA} does not hold this model: {e}") from e
    if more := sorted(metadata.state_dict_metadata.keys() - state.keys()):
        raise OtherModel(f"{METADATA} does not hold this model, which has no {more[0]} ({len(more)} such in all)")
    return sorted({reader.file(item.storage_index) for item in plan.items})


def _is_scalar(item: WriteItem) -> bool:
    return item.tensor_data is not None and not item.tensor_data.size


def rank_file(rank: int, number: int) -> str:
    """Return the name of a rank's file."""
    return f"{rank_prefix(rank)}{number:03d}.safetensors"


def _read_metadata(path: Path) -> Metadata:
    try:
        document = json.loads(path.read_text())
        refuse_newer(METADATA, document["schemaVersion"], _SCHEMA_VERSION)
        if document["schemaVersion"] != _SCHEMA_VERSION:
            raise CheckpointDamaged(f"{path} has schemaVersion {document['schemaVersion']!r}, which there never was")
        return _metadata(document["tensors"])
    except NewerSchema:
        raise
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointDamaged(f"{path} cannot be read: {type(e).__name__}: {e}") from e


def _metadata(tensors: dict[str, Any]) -> Metadata:
    entries: dict[str, Any] = {}
    places: dict[MetadataIndex, Place] = {}
    for name, entry in tensors.items():
        chunks = []
        for number, chunk in enumerate(entry["chunks"]):
            offsets = torch.Size(chunk["offsets"])
            chunks.append(ChunkStorageMetadata(offsets, torch.Size(chunk["sizes"])))
            if "/" in chunk["file"]:
                raise ValueError(f"file {chunk['file']!r} is not beside {METADATA}")
            places[MetadataIndex(name, offsets, number)] = Place(chunk["file"], chunk["key"])
        if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(entry["size"]):
            # DCP would leave the numbers that lie nowhere as they were before the load, and say nothing.
            raise ValueError(f"the chunks of {name} are not all of it")
        properties = replace(TensorProperties(), dtype=_DTYPES[entry["dtype"]])
        entries[name] = TensorStorageMetadata(properties, torch.Size(entry["size"]), chunks)
    return Metadata(entries, storage_data=places)
