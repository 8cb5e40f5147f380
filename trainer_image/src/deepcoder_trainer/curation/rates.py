"""Pass rates of a model per problem: from the samples that an evaluation or a run stored, or from `sampling`.

`deepcoder-trainer evaluate --n 8 …` writes a folder for each model with a Parquet file of samples for each problem set,
and a run writes one for each step. Rates are those of one model: samples of several models are refused, and so are two
sets that use the same problem names. A sample that no judge could judge does not count.

Rates belong to prompts: an evaluation names a row without an id by its place in the evaluated set, and curation names
it otherwise. The id decides only where the prompt is unknown.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from deepcoder_trainer.problems.files import DatasetError

K = TypeVar("K")

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


@dataclass(frozen=True)
class Measured:
    """Pass rates from stored samples."""

    by_id: Mapping[str, float]
    by_prompt: Mapping[bytes, float] = field(default_factory=dict)
    """Digest of a prompt to the pass rate of all problems that have it."""

    def of(self, problem: str, prompt: str) -> float | None:
        """Return the pass rate of a problem; None if it has none."""
        rate = self.by_prompt.get(_digest(prompt))
        return self.by_id.get(problem) if rate is None else rate

    def check(self, read: int, matched: int, example: str) -> None:
        """Raise DatasetError if too few of the problems that were `read` have a rate: then these are rates of another
        set, and a filter without rates keeps everything. Rates may cover a part of the inputs, and inputs a part of
        the rates. `example` is the id of a problem without a rate."""
        if 2 * matched >= min(read, len(self.by_id)):
            return
        raise DatasetError(
            f"--pass-rates (dataset.curation.passRates): {matched} of {read} problems have a pass rate among the "
            f"{len(self.by_id)} there: neither the prompt nor the id of {example!r} is in the samples, which have "
            f"{next(iter(self.by_id))!r}, for example: name samples of an evaluation of these inputs"
        )


def read_pass_rates(path: Path) -> Measured:
    """Return the pass rates of a samples file or of all files of a folder. Raises DatasetError."""
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        raise DatasetError(
            f"--pass-rates {path}: no samples there: name a .parquet file of samples, or a folder of them"
        )
    if len(folders := {file.parent for file in files}) > 1:
        names = ", ".join(sorted(folder.relative_to(path).as_posix() for folder in folders))
        raise DatasetError(f"--pass-rates {path}: samples of several models ({names}): name the folder of one")
    by_id, by_prompt = _Shares[str](), _Shares[bytes]()
    sets: dict[str, Path] = {}
    for file in files:
        try:
            named = ["prompt"] if "prompt" in pq.read_schema(file).names else []
            table = pq.read_table(file, columns=["problem_id", "reward", *named])
        except (OSError, KeyError, pa.ArrowException) as error:
            raise DatasetError(f"--pass-rates {file}: not a file of samples ({error})") from error
        ids, rewards = table.column("problem_id").to_pylist(), table.column("reward").to_pylist()
        for problem in set(ids) if not _OF_RUN.match(file.name) else ():
            if (other := sets.setdefault(problem, file)) != file:
                raise DatasetError(
                    f"--pass-rates {path}: {problem!r} is a problem of {other.name} and of {file.name}: name the file "
                    "of one set"
                )
        prompts = table.column("prompt").to_pylist() if named else [None] * len(ids)
        for problem, prompt, reward in zip(ids, prompts, rewards, strict=True):
            if reward is not None:
                by_id.count(problem, reward > 0)
                if prompt is not None:
                    by_prompt.count(_digest(prompt), reward > 0)
    if not (rates := by_id.shares()):
        raise DatasetError(f"--pass-rates {path}: no sample there was judged: name the samples of another evaluation")
    return Measured(rates, by_prompt.shares())


class _Shares(Generic[K]):
    """Shares of right answers."""

    def __init__(self) -> None:
        self._right: dict[K, int] = defaultdict(int)
        self._judged: dict[K, int] = defaultdict(int)

    def count(self, key: K, right: bool) -> None:
        self._judged[key] += 1
        self._right[key] += right

    def shares(self) -> dict[K, float]:
        return {key: self._right[key] / count for key, count in self._judged.items()}


def _digest(prompt: str) -> bytes:
    return hashlib.sha256(prompt.encode(errors="surrogatepass")).digest()
