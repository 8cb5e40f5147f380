"""Pass rates of a model per problem: from the samples that an evaluation or a run stored, or from `sampling`.

`deepcoder-trainer evaluate --n 8 …` writes a folder for each model with a Parquet file of samples for each problem set,
and a run writes one for each step. Rates are those of one model: samples of several models are refused, and so are two
sets that use the same problem names. A sample that no judge could judge does not count.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deepcoder_trainer.problems.files import DatasetError

_OF_RUN = re.compile(r"(step|ahead)-[a\d]+\.parquet\Z")
"""Names of a run's samples files, which all have problems of the same set."""


@dataclass(frozen=True)
class Rates:
    """Pass rates of a model that was sampled."""

    rates: Mapping[str, float]
    """Problem id to the share of correct responses."""
    settings: Mapping[str, Any]
    """The settings of sampling."""
    sampled: int
    """Number of responses that were sampled and judged now."""
    known: int
    """Number of responses that the journal had."""

    def facts(self) -> dict[str, Any]:
        """Return settings and numbers for the report."""
        return {**self.settings, "sampled": self.sampled, "known": self.known}


def read_pass_rates(path: Path) -> dict[str, float]:
    """Return problem id to pass rate, from a samples file or all files of a folder. Raises DatasetError."""
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        raise DatasetError(
            f"--pass-rates {path}: no samples there: name a .parquet file of samples, or a folder of them"
        )
    if len(folders := {file.parent for file in files}) > 1:
        names = ", ".join(sorted(folder.relative_to(path).as_posix() for folder in folders))
        raise DatasetError(f"--pass-rates {path}: samples of several models ({names}): name the folder of one")
    right: dict[str, int] = defaultdict(int)
    judged: dict[str, int] = defaultdict(int)
    sets: dict[str, Path] = {}
    for file in files:
        try:
            table = pq.read_table(file, columns=["problem_id", "reward"])
        except (OSError, KeyError, pa.ArrowException) as error:
            raise DatasetError(f"--pass-rates {file}: not a file of samples ({error})") from error
        ids, rewards = table.column("problem_id").to_pylist(), table.column("reward").to_pylist()
        for problem in set(ids) if not _OF_RUN.match(file.name) else ():
            if (other := sets.setdefault(problem, file)) != file:
                raise DatasetError(
                    f"--pass-rates {path}: {problem!r} is a problem of {other.name} and of {file.name}: name the file "
                    "of one set"
                )
        for problem, reward in zip(ids, rewards, strict=True):
            if reward is not None:
                judged[problem] += 1
                right[problem] += reward > 0
    return {problem: right[problem] / count for problem, count in judged.items()}
