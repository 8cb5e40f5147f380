"""Reads training problems from local files.

The files are JSON Lines (`.jsonl`, `.jsonl.gz`), JSON arrays or Parquet, in our own layout, in the schema of the
published training scripts, or in the layout in which the DeepCoder data is released; the fields tell which. Reading is
strict: an unusable row is an error that names the file, the line, the field and the fix, because a dataset that
silently shrinks is noticed only after the run. Users cannot fix the released files, so in a source with hundreds of
usable rows a few unusable ones are left out and reported.

If a folder has files of several splits, the training split is read (`path_metadata`).
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from deepcoder_contracts.curation import Layout
from deepcoder_trainer.checkpoint.storage import file_sha256
from deepcoder_trainer.problems.files import DatasetError as DatasetError
from deepcoder_trainer.problems.files import FileRow, data_files, place_of, read_rows
from deepcoder_trainer.problems.path_metadata import SOURCES, TRAINING, split_of
from deepcoder_trainer.problems.readers import layout_of, released, source_of_released
from deepcoder_trainer.problems.rows import RowError, check_judgeable, problem_from_row
from deepcoder_trainer.types import Problem

log = logging.getLogger(__name__)

_MOST_UNUSABLE = 0.01
"""Largest share of unusable rows among the released rows of one source."""


@dataclass(frozen=True)
class Dataset:
    """The problems of a dataset, in file order."""

    problems: tuple[Problem, ...]
    digest: str
    """`sha256:<hex>` of the file, or of a folder's file names and digests in order."""
    left_out: tuple[str, ...] = ()
    """Place and reason of each released row that cannot be used."""


def load_dataset(path: str | Path, sha256: str | None = None) -> Dataset:
    """Read a file, or every data file of a folder in name order.

    A given `sha256` is checked before anything is parsed. Raises DatasetError.
    """
    path = Path(path)
    files = data_files(path, TRAINING)
    digest = dataset_digest(path, files)
    if sha256 is not None and digest != sha256.lower():
        raise DatasetError(
            f"dataset.sha256: {path} has sha256 {digest}, expected {sha256}: the file has changed or is cut; "
            "fetch it again, or set dataset.sha256 to the file you mean"
        )
    reading = _Reading(path)
    for file in files:
        for row in read_rows(file):
            reading.add(file, row)
    left_out = reading.left_out()
    if not reading.problems:
        raise DatasetError(f"{path}: no problem in it: check dataset.uri")
    if left_out:
        log.warning("%d rows cannot be used and are left out, the first of them %s", len(left_out), left_out[0])
    return Dataset(tuple(reading.problems), f"sha256:{digest}", left_out)


class _Reading:
    """Collects the problems of one file or folder, row by row."""

    def __init__(self, root: Path) -> None:
        self.problems: list[Problem] = []
        self._root = root
        self._places: dict[str, str] = {}
        self._rows: Counter[tuple[str, str]] = Counter()
        """Number of released rows by source and split, usable or not. It numbers the rows, so that a row's id does not
        depend on whether others are usable."""
        self._unusable: dict[str, list[str]] = {}
        """Source to place and reason of each unusable released row."""

    def add(self, file: Path, row: FileRow) -> None:
        """Read one row. Raises DatasetError."""
        place = place_of(file, self._root, row.number)
        try:
            is_released = layout_of(row.fields) is Layout.RELEASED
            problem = self._released(file, row, place) if is_released else problem_from_row(row.fields)
        except RowError as error:
            raise DatasetError(f"{place}: {error}") from None
        if problem is None:
            return
        if (other := self._places.setdefault(problem.id, place)) != place:
            raise DatasetError(f"{place}: id: {problem.id!r} was used at {other}: give each problem an id of its own")
        self.problems.append(problem)

    def left_out(self) -> tuple[str, ...]:
        """Return the rows that were left out. Raises DatasetError if they are too many."""
        for source, reasons in self._unusable.items():
            rows = sum(count for (of, _), count in self._rows.items() if of == source)
            if len(reasons) > _MOST_UNUSABLE * rows:
                raise DatasetError(f"{reasons[0]}; so it is with {len(reasons)} of {rows} problems of {source}")
        return tuple(reason for reasons in self._unusable.values() for reason in reasons)

    def _released(self, file: Path, row: FileRow, place: str) -> Problem | None:
        """Return the problem of a released row, or None if it cannot be used."""
        source = source_of_released(row.fields, file, self._root)
        source = SOURCES.get(source, source)
        split = split_of(file, self._root) or TRAINING[0]
        number = self._rows[source, split]
        self._rows[source, split] += 1
        try:
            record = released(row.fields, source)
            if not record.statement or not record.tests:
                raise RowError("problem, tests: one is empty: give a statement and its tests")
            check_judgeable(record.problem())
        except RowError as error:
            self._unusable.setdefault(source, []).append(f"{place}: {error}")
            return None
        return record.at(place, number, split).problem()


def dataset_digest(path: Path, files: list[Path]) -> str:
    """Return the SHA-256 (hexadecimal) of a file, or of the names and digests of a folder's `files`."""
    if path.is_file():
        return file_sha256(path)
    listing = "".join(f"{f.relative_to(path)} {file_sha256(f)}\n" for f in files)
    return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()
