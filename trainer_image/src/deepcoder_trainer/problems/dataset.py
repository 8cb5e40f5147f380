"""Reading training and evaluation problems from local files.

JSON Lines (`.jsonl`, `.jsonl.gz`), JSON arrays and Parquet, in our own layout or in the schema of the released
DeepCoder data, told apart by their fields. Both are read strictly: a row that cannot be used is named with its file,
its line, the field and the mend, because a dataset that silently shrinks is found only after the run.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from deepcoder_trainer.checkpoint.storage import file_sha256
from deepcoder_trainer.problems.files import DatasetError as DatasetError
from deepcoder_trainer.problems.files import data_files, read_rows
from deepcoder_trainer.problems.rows import RowError, problem_from_row
from deepcoder_trainer.types import Problem


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
    files = data_files(path)
    digest = dataset_digest(path, files)
    if sha256 is not None and digest != sha256.lower():
        raise DatasetError(
            f"dataset.sha256: {path} has sha256 {digest}, expected {sha256}: the file has changed or is cut; "
            "fetch it again, or set dataset.sha256 to the file you mean"
        )
    problems: list[Problem] = []
    places: dict[str, str] = {}
    for file in files:
        for row in read_rows(file):
            place = f"{file.name}:{row.number}"
            try:
                problem = problem_from_row(row.fields)
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


def dataset_digest(path: Path, files: list[Path]) -> str:
    """SHA-256 (hexadecimal) of a file; of a folder, over the names and digests of its `files`."""
    if path.is_file():
        return file_sha256(path)
    listing = "".join(f"{f.relative_to(path)} {file_sha256(f)}\n" for f in files)
    return hashlib.sha256(listing.encode()).hexdigest()
