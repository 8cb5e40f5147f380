"""Reading training and evaluation problems from local files.

JSON Lines (`.jsonl`, `.jsonl.gz`) and Parquet, in our own layout or in the schema of the released DeepCoder data,
told apart by their fields. Both are read strictly: a row that cannot be used is named with its file, its line, the
field and the mend, because a dataset that silently shrinks is found only after the run.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deepcoder_trainer.checkpoint.storage import file_sha256
from deepcoder_trainer.problems.rows import RowError, problem_from_row
from deepcoder_trainer.types import Problem

_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


class DatasetError(ValueError):
    """A dataset that cannot be used; the message names place, field and mend."""


@dataclass(frozen=True)
class Dataset:
    """Problems of one source, in file order."""

    problems: tuple[Problem, ...]
    digest: str
    """`sha256:<hex>` of the file; of a folder, over its files' names and digests in order."""


def load_dataset(path: str | Path, sha256: str | None = None) -> Dataset:
    """Read a file, or every data file of a folder in name order.

    `sha256`, where given, is checked before anything is parsed. Raises DatasetError.
    """
    path = Path(path)
    files = _data_files(path)
    digests = [(f, file_sha256(f)) for f in files]
    digest = (
        digests[0][1]
        if path.is_file()
        else hashlib.sha256("".join(f"{f.relative_to(path)} {d}\n" for f, d in digests).encode()).hexdigest()
    )
    if sha256 is not None and digest != sha256.lower():
        raise DatasetError(
            f"dataset.sha256: {path} has sha256 {digest}, expected {sha256}: the file has changed or is cut; "
            "fetch it again, or set dataset.sha256 to the file you mean"
        )
    problems: list[Problem] = []
    places: dict[str, str] = {}
    for file in files:
        for number, row in _rows(file):
            place = f"{file.name}:{number}"
            try:
                problem = problem_from_row(row)
            except RowError as error:
                raise DatasetError(f"{place}: {error}") from None
            if problem.id in places:
                raise DatasetError(
                    f"{place}: id: {problem.id!r} was used at {places[problem.id]}: give each problem an id of its own"
                )
            places[problem.id] = place
            problems.append(problem)
    if not problems:
        raise DatasetError(f"{path}: no problem in it: check dataset.uri")
    return Dataset(tuple(problems), f"sha256:{digest}")


def _data_files(path: Path) -> list[Path]:
    if path.is_file():
        if not path.name.endswith(_SUFFIXES):
            raise DatasetError(f"{path}: cannot be read: use one of {', '.join(_SUFFIXES)}")
        return [path]
    if not path.is_dir():
        raise DatasetError(f"{path}: no such file or folder: check dataset.uri")
    files = sorted(f for f in path.rglob("*") if f.is_file() and f.name.endswith(_SUFFIXES))
    if not files:
        raise DatasetError(f"{path}: no data file in this folder: put {', '.join(_SUFFIXES)} files there")
    return files


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows with their number from 1: the line of a JSON Lines file, the row of a Parquet file."""
    try:
        if path.name.endswith(".parquet"):
            yield from _parquet_rows(path)
        else:
            yield from _json_rows(path)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, pa.ArrowException) as error:
        raise DatasetError(f"{path.name}: cannot be read ({error}): fetch the file again") from error


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DatasetError(
                    f"{path.name}:{number}: not JSON ({error.msg} at column {error.colno}): "
                    "write one JSON object a line"
                ) from None
            if not isinstance(row, dict):
                raise DatasetError(f"{path.name}:{number}: a {type(row).__name__}: write one JSON object a line")
            yield number, row


def _parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    number = 0
    with pq.ParquetFile(path) as file:
        # Small batches: one row's tests may take megabytes.
        for batch in file.iter_batches(batch_size=16):
            for row in batch.to_pylist():
                number += 1
                yield number, {key: value for key, value in row.items() if value is not None}
