"""Reads rows of data files one at a time: JSON Lines, JSON arrays and Parquet.

The files may be hostile or damaged, and far larger than memory. So only one row is in memory (of Parquet at most
sixteen), the size of a row is limited, and so is what a compressed file expands to. In Parquet a repeated value takes
no space, so the number of rows expanded at once depends on what the file says about its dictionaries. Every failure is
a DatasetError that names the file, the row and the fix.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from deepcoder_trainer.problems.json_text import TooManyValues, check_values
from deepcoder_trainer.problems.path_metadata import of_splits

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
MAX_ROW_BYTES = 256 << 20
"""Largest row of a JSON file, in bytes. LiveCodeBench's rows have tens of megabytes."""
MAX_EXPANDED_BYTES = 64 << 30
"""Largest size, in bytes, to which a compressed file may expand."""
_CHUNK = 1 << 20
_PARQUET_ROWS = 16
"""Largest number of Parquet rows read at a time, because one row's tests may take megabytes."""
_DICTIONARY = frozenset({"RLE_DICTIONARY", "PLAIN_DICTIONARY"})


class DatasetError(ValueError):
    """A dataset that cannot be used. The message names place, field and fix."""


@dataclass(frozen=True)
class FileRow:
    """One row of a file."""

    number: int
    """Line number in a JSON Lines file, row number in others; from 1."""
    fields: Mapping[str, Any]
    """Values by column, without null values."""
    done: float
    """Share of the file that has been read, from 0 to 1."""


def data_files(path: Path, splits: Sequence[str] = ()) -> list[Path]:
    """Return the file itself, or the data files of a folder in name order (see `of_splits`). Raises DatasetError."""
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise DatasetError(f"{path}: cannot be read: use one of {', '.join(SUFFIXES)}; archives are never unpacked")
        return [path]
    if not path.is_dir():
        raise DatasetError(f"{path}: no such file or folder: check dataset.uri")
    files = sorted(f for f in path.rglob("*") if f.is_file() and f.name.endswith(SUFFIXES))
    # A folder's .json beside data in another format describes that data.
    files = of_splits([f for f in files if not f.name.endswith(".json")] or files, path, splits)
    if not files:
        raise DatasetError(f"{path}: no data file in this folder: put {', '.join(SUFFIXES)} files there")
    return files


def place_of(file: Path, root: Path, number: int) -> str:
    """Return the place of a row: its number, and its file below `root`, which may be the file itself."""
    return f"{file.name if file == root else file.relative_to(root).as_posix()}:{number}"


def read_rows(path: Path) -> Iterator[FileRow]:
    """Yield the rows of a file, in order. Raises DatasetError."""
    try:
        if path.name.endswith(".parquet"):
            yield from _parquet(path)
        elif path.name.endswith(".json"):
            yield from _json_array(path)
        else:
            yield from _json_lines(path)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, pa.ArrowException) as error:
        raise DatasetError(f"{path.name}: cannot be read ({error}): fetch the file again") from error


def _json_lines(path: Path) -> Iterator[FileRow]:
    size = max(path.stat().st_size, 1)
    with path.open("rb") as raw:
        compressed = path.name.endswith(".gz")
        file: IO[bytes] = gzip.GzipFile(fileobj=raw) if compressed else raw  # type: ignore[assignment]
        number = expanded = 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            expanded += len(line)
            if len(line) > MAX_ROW_BYTES or expanded > MAX_EXPANDED_BYTES:
                raise _too_large(path, number, row=len(line) > MAX_ROW_BYTES)
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                done = raw.tell() if compressed else expanded
                yield FileRow(number, _object(path, number, line.decode("utf-8")), min(1.0, done / size))


def _json_array(path: Path) -> Iterator[FileRow]:
    """Yield the objects of one JSON array, decoded one by one."""
    size = max(path.stat().st_size, 1)
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig") as file:
        buffer, position, number, read = file.read(_CHUNK), 0, 0, 0
        read = len(buffer)
        while True:
            while position < len(buffer) and buffer[position] in " \t\r\n,[":
                position += 1
            if position < len(buffer) and buffer[position] == "]":
                return
            try:
                if position >= len(buffer):
                    raise IndexError
                value, end = decoder.raw_decode(buffer, position)
            except (ValueError, IndexError, RecursionError) as error:
                more = file.read(max(_CHUNK, len(buffer) - position))  # double it, so that a row needs few tries
                if not more or isinstance(error, RecursionError):
                    raise DatasetError(
                        f"{path.name}:{number + 1}: not JSON ({_said(error)}): write an array of objects, or one JSON "
                        "object a line in a .jsonl file"
                    ) from None
                read += len(more)
                buffer, position = buffer[position:] + more, 0
                if len(buffer) > 2 * MAX_ROW_BYTES:
                    raise _too_large(path, number + 1, row=True) from None
                try:
                    check_values(buffer)
                except TooManyValues as many:
                    raise DatasetError(f"{path.name}:{number + 1}: {many}") from None
                continue
            number, position = number + 1, end
            yield FileRow(number, _as_object(path, number, value), min(1.0, (read - len(buffer) + position) / size))


def _parquet(path: Path) -> Iterator[FileRow]:
    number = 0
    with pq.ParquetFile(path) as file:
        total = max(file.metadata.num_rows, 1)
        for group in range(file.metadata.num_row_groups):
            most = _rows_at_once(file.metadata.row_group(group))
            for batch in file.iter_batches(batch_size=most, row_groups=[group]):
                if batch.nbytes > most * MAX_ROW_BYTES:
                    raise _too_large(path, number + 1, row=True)
                try:
                    rows = batch.to_pylist()
                except (ValueError, OverflowError) as error:  # as of a date that Python does not have
                    raise DatasetError(
                        f"{path.name}:{number + 1}: cannot be read ({error}): leave out what is no text or number"
                    ) from None
                for row in rows:
                    number += 1
                    yield FileRow(number, {k: v for k, v in row.items() if v is not None}, min(1.0, number / total))


def _rows_at_once(group: Any) -> int:
    """Return how many rows of a group to read at a time, so that they fit into `_PARQUET_ROWS` rows of the largest
    size, even if each row repeats all values of its columns' dictionaries."""
    columns = [group.column(n) for n in range(group.num_columns)]
    repeated = sum(c.total_uncompressed_size for c in columns if _DICTIONARY & set(c.encodings))
    return max(1, min(_PARQUET_ROWS, _PARQUET_ROWS * MAX_ROW_BYTES // max(repeated, 1)))


def _object(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        check_values(line)
        value = json.loads(line)  # not `value_of`: tests with long integers are strings within the row
    except TooManyValues as error:
        raise DatasetError(f"{path.name}:{number}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path.name}:{number}: not JSON ({_said(error)}): write one JSON object a line") from None
    return _as_object(path, number, value)


def _as_object(path: Path, number: int, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DatasetError(f"{path.name}:{number}: a {type(value).__name__}: write one JSON object a line")
    return value


def _said(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deep" if isinstance(error, RecursionError) else str(error) or "the file is cut"


def _too_large(path: Path, number: int, *, row: bool) -> DatasetError:
    if row:
        return DatasetError(f"{path.name}:{number}: a row of more than {MAX_ROW_BYTES >> 20} MiB: split its tests")
    return DatasetError(f"{path.name}:{number}: the file expands to more than {MAX_EXPANDED_BYTES >> 30} GiB: split it")
