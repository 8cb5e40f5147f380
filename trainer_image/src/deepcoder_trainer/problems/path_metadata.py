"""Derives the split and the source of problems from the path of their file.

On the Hugging Face hub, a dataset has a folder for each of its configurations, with files for each split, as in
`taco/train-00000-of-00004.parquet`, or with a folder for each split, as in the Parquet files that the hub makes of any
dataset (`default/train/0000.parquet`). The released DeepCoder data is such a dataset, and its rows contain neither. So
a folder with both training and test problems is never read as one set: training reads the training split, evaluation
the test split. If names say nothing, everything is read.

Pure: only names are looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

TRAINING = ("train",)
EVALUATION = ("test", "validation")
"""Splits in order of preference."""

SOURCES = {
    "taco": "taco",
    "primeintellect": "primeintellect",
    "codeforces": "codeforces",
    "lcbv5": "livecodebench",
    "livecodebench": "livecodebench",
}
"""Configurations of the released data, and the source of the problems in each."""

_SPLIT = re.compile(r"(train|test|validation)(?=[-_.])")
_SPLIT_FOLDER = re.compile(r"(?:partial-)?(train|test|validation)")
"""The hub names the folder `partial-train` if a set is too large to be converted completely."""
_WORD = re.compile(r"[a-z0-9]+")


def split_of(file: Path, root: Path) -> str | None:
    """Return the split that a file's name begins with, as the hub names files, otherwise that of the nearest folder
    below `root` with a split's name; None if there is neither."""
    if (found := _SPLIT.match(file.name)) is not None:
        return found[1]
    folders = file.relative_to(root).parts[:-1]
    return next((found[1] for part in reversed(folders) if (found := _SPLIT_FOLDER.fullmatch(part))), None)


def of_splits(files: Sequence[Path], root: Path, wanted: Sequence[str]) -> list[Path]:
    """Return the files below `root` of the first wanted split that exists, and those without a split. If no wanted
    split exists, return all files."""
    splits = {file: split_of(file, root) for file in files}
    split = next((s for s in wanted if s in splits.values()), None)
    return [f for f in files if split is None or splits[f] in (None, split)]


def source_of(file: Path, root: Path) -> str | None:
    """Return the source named by a file, otherwise by the nearest folder from `root` downwards; None if there is none.

    `root` is the requested file or folder. If it is a file, its own folder counts, too.
    """
    above = root.parent if root != file else root.parent.parent
    for part in reversed(file.relative_to(above).parts):
        sources = {SOURCES[word] for word in _WORD.findall(part.lower()) if word in SOURCES}
        if len(sources) == 1:
            return sources.pop()
    return None
