"""Reads the rollouts of a step from Parquet without ever holding all of their texts in memory.

The list reads only the short columns. To read one rollout, it is located in these, and its texts are read in small
batches. Objects are cached compressed, by version: an attempt that trains a step again replaces them. A file that says
it expands beyond the limits below is not read. Against a file that lies about this, there is only the pod's memory
limit.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deepcoder_client.errors import StorageError, StorageFault
from deepcoder_client.run_folder import RunFolder
from deepcoder_web.storage_threads import Budget

_KEPT_BYTES = 64 << 20
_MOST_BYTES = 64 << 20
"""Largest size of the list's columns in bytes."""
_MOST_TEXT_BYTES = 192 << 20
"""Largest size of a row group's texts in bytes."""
_MOST_ROWS = 100_000
_LONGEST_WORD = 4096
"""Longest name or verdict in bytes."""
_BATCH_ROWS = 16
_PLACE = ("group_id", "index", "draw")
_LISTED = (*_PLACE, "problem_id", "reward", "verdict", "response_tokens", "dropped")

Key = tuple[str, str, int]


class Rollouts:
    """The rollouts of all runs. Thread-safe."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._kept: OrderedDict[Key, tuple[object, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def rows(self, folder: RunFolder, stage: str, step: int) -> list[dict[str, Any]]:
        """Return all rollouts of a step, without their texts."""
        with self._object(folder, stage, step, _MOST_BYTES) as data:
            rows: list[dict[str, Any]] = _short(data, _LISTED).to_pylist()
            return rows

    def one(
        self, folder: RunFolder, stage: str, step: int, place: tuple[int, int], draw: int | None
    ) -> dict[str, Any] | None:
        """Return one complete rollout, or None. Without `draw`, the last of several draws, which was trained on."""
        with self._object(folder, stage, step, _MOST_TEXT_BYTES) as data:
            places = _short(data, _PLACE).to_pylist()
            found = [
                (row.get("draw", 0), number)
                for number, row in enumerate(places)
                if (row["group_id"], row["index"]) == place and draw in (None, row.get("draw", 0))
            ]
            return _row(data, max(found)[1]) if found else None

    @contextmanager
    def _object(self, folder: RunFolder, stage: str, step: int, unpacked: int) -> Iterator[bytes]:
        stored = folder.samples_object(stage, step)
        key, version = (folder.run.metadata.uid, stage, step), (stored.etag, stored.size, stored.modified)
        with self._lock:
            known = self._kept.get(key)
        there = known is not None and known[0] == version
        with self._budget.take(unpacked + (0 if there else stored.size)):
            data = known[1] if known is not None and there else folder.read_samples(stage, step)
            self._keep(key, version, data)
            try:
                yield data
            except (pa.ArrowException, OSError, KeyError) as error:
                raise StorageError(f"samples of stage {stage} step {step} cannot be read: {error}") from error

    def _keep(self, key: Key, version: object, data: bytes) -> None:
        with self._lock:
            self._kept[key] = (version, data)
            self._kept.move_to_end(key)
            while sum(len(held) for _, held in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)


def _short(data: bytes, wanted: Sequence[str]) -> pa.Table:
    """Read the short columns; strings are dictionary-encoded, so that a repeated one is read once."""
    file = pq.ParquetFile(io.BytesIO(data))
    if file.metadata.num_rows > _MOST_ROWS:
        raise _large(f"{file.metadata.num_rows} rows are more than {_MOST_ROWS}")
    columns = [name for name in wanted if name in file.schema_arrow.names]
    size = sum(_sizes(file, columns))
    if size > _MOST_BYTES:
        raise _large(f"{size} bytes of names and figures are more than {_MOST_BYTES}")
    words = _words(file, columns)
    table = pq.read_table(io.BytesIO(data), columns=columns, read_dictionary=words)
    for name in words:
        for chunk in table[name].chunks:
            if (pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0) > _LONGEST_WORD:
                raise _large(f"column {name} has a word of more than {_LONGEST_WORD} bytes")
    return table


def _row(data: bytes, number: int) -> dict[str, Any]:
    """Return a row by its number, reading batches one after the other."""
    file = pq.ParquetFile(io.BytesIO(data))
    columns = file.schema_arrow.names
    if (size := max(_sizes(file, columns))) > _MOST_TEXT_BYTES:
        raise _large(f"{size} bytes of rollouts are more than {_MOST_TEXT_BYTES}")
    file, seen = pq.ParquetFile(io.BytesIO(data), read_dictionary=_words(file, columns)), 0
    for batch in file.iter_batches(batch_size=_BATCH_ROWS):
        if number < seen + batch.num_rows:
            row: dict[str, Any] = batch.slice(number - seen, 1).to_pylist()[0]
            return row
        seen += batch.num_rows
    raise StorageError("the samples have fewer rows than they say")


def _sizes(file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[int]:
    """Return the size of these columns in each row group, as the file states it."""
    about = file.metadata
    for group in (about.row_group(n) for n in range(about.num_row_groups)):
        chunks = (group.column(n) for n in range(group.num_columns))
        mine = [c for c in chunks if c.path_in_schema.partition(".")[0] in columns]
        yield sum(c.total_uncompressed_size + 8 * c.num_values for c in mine)


def _words(file: pq.ParquetFile, columns: Sequence[str]) -> list[str]:
    return [name for name in columns if pa.types.is_string(file.schema_arrow.field(name).type)]


def _large(why: str) -> StorageError:
    return StorageError(f"samples are too large to be shown: {why}", StorageFault.TOO_LARGE)
