"""Prepares an evaluation's problem sets: reads and encodes them, with the digests that go into the key.

Raises `BadConfig`, with the set's field, if a set cannot be read completely, because a set that silently shrinks is a
different set.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deepcoder_contracts.stage import EvaluationDataset
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation.benchmarks import Benchmark, load_benchmark
from deepcoder_trainer.evaluation.codeforces import Contest, contest_of
from deepcoder_trainer.evaluation.contests import Contests, read_contests
from deepcoder_trainer.evaluation.context import EvaluationContext
from deepcoder_trainer.evaluation.plan import DatasetInput
from deepcoder_trainer.problems.files import DatasetError
from deepcoder_trainer.problems.prompt import EncodedProblem, encode_problems

Locate = Callable[[str, str], Path]
"""Returns the local path of a URI that a field names."""

log = logging.getLogger(__name__)

KEPT_CHARACTERS = 1 << 30
"""Largest number of test characters that stay in memory between evaluations."""


@dataclass(frozen=True)
class ProblemSet:
    """A problem set, read and encoded."""

    name: str
    benchmark: Benchmark
    problems: tuple[EncodedProblem, ...]
    left_out: tuple[str, ...]
    """Ids of the problems whose prompts are too long."""
    input: DatasetInput
    contests: dict[str, Contest | str]
    """Codeforces: contest number to the contest, or to the reason why it cannot be used."""
    all_ratings: tuple[float, ...] | None

    @property
    def is_rated(self) -> bool:
        """Whether a Codeforces rating is computed."""
        return bool(self.contests)

    def without(self, names: Collection[str]) -> ProblemSet:
        """Return the set with these problems left out, too."""
        kept = tuple(p for p in self.problems if p.problem.id not in names)
        gone = tuple(p.problem.id for p in self.problems if p.problem.id in names)
        asked = replace(self.input, prompts=_digest_of_prompts(kept))
        return replace(self, problems=kept, left_out=(*self.left_out, *gone), input=asked)


class ProblemSets:
    """The problem sets of a Train stage, which are used in every evaluation.

    They are read once and kept, because samplers idle while they are read. If their tests take gigabytes, they are read
    each time, because the head needs its memory for other things, but from where they were fetched to: storage that is
    away later ends no evaluation. Several threads may read: one after the other.
    """

    def __init__(self, context: EvaluationContext) -> None:
        self._context = context
        self._kept: list[ProblemSet] | None = None
        self._fetched: dict[str, Path] = {}
        self._reading = threading.Lock()

    def read(self) -> list[ProblemSet]:
        """See `read_problem_sets`."""
        with self._reading:
            if self._kept is not None:
                return self._kept
            sets = read_problem_sets(self._context, self._locate)
            if _characters(sets) <= KEPT_CHARACTERS:
                self._kept = sets
            return sets

    def _locate(self, uri: str, field: str) -> Path:
        if uri not in self._fetched or not self._fetched[uri].exists():
            self._fetched[uri] = self._context.sources.dataset(uri, field=field)
        return self._fetched[uri]


def _characters(sets: Sequence[ProblemSet]) -> int:
    tests = (test for each in sets for problem in each.benchmark.problems for test in problem.tests)
    return sum(len(test.input) + len(test.output) for test in tests)


def read_problem_sets(context: EvaluationContext, locate: Locate | None = None) -> list[ProblemSet]:
    """Read all sets of the stage, from where `locate` (the sources) has them. Raises BadConfig if one is invalid."""
    settings = context.config.stage.evaluate
    assert settings is not None, "only called for stages that evaluate"
    locate = locate or (lambda uri, field: context.sources.dataset(uri, field=field))
    return [
        _read(context, source, f"stage.evaluate.datasets.{n}", locate) for n, source in enumerate(settings.datasets)
    ]


def _read(context: EvaluationContext, source: EvaluationDataset, field: str, locate: Locate) -> ProblemSet:
    if source.name in (".", ".."):
        raise BadConfig(
            f"a problem set cannot be called {source.name}: its results are in a folder", field=f"{field}.name"
        )
    limit, setting = context.config.recipe.max_prompt_tokens, context.names.max_prompt_tokens
    contests = None
    if source.contests is not None:
        contests = read_contests(locate(source.contests, f"{field}.contests"))
    path = locate(source.uri, f"{field}.uri")
    try:
        benchmark = load_benchmark(path, source, contests.problems if contests else None)
        encoded = encode_problems(benchmark.problems, context.tokenizer, limit, setting)
    except DatasetError as error:
        raise BadConfig(f"{source.name}: {error}", field=f"{field}.uri") from error
    except ValueError as error:
        raise BadConfig(f"{source.name}: {error}", field=setting) from error
    if encoded.too_long:
        log.warning("%s: %d problems are left out, their prompts are too long", source.name, len(encoded.too_long))
    return ProblemSet(
        name=source.name,
        benchmark=benchmark,
        problems=encoded.kept,
        left_out=encoded.too_long,
        input=DatasetInput(
            name=source.name,
            digest=benchmark.digest,
            prompts=_digest_of_prompts(encoded.kept),
            scoring=" ".join(
                [source.extraction.value, *sorted({p.scoring.value for p in benchmark.problems if p.answer is None})]
            ),
            window=f"{source.since or ''}..{source.until or ''}",
            contests=contests.digest if contests else "",
        ),
        contests=_contests(benchmark, contests, field) if contests else {},
        all_ratings=contests.ratings if contests else None,
    )


def _digest_of_prompts(problems: tuple[EncodedProblem, ...]) -> str:
    digest = hashlib.sha256()
    for each in problems:
        digest.update(f"{each.problem.id}\0{each.problem.prompt}\0{len(each.prompt_ids)}\0".encode("utf-8", "replace"))
        digest.update(each.prompt_ids.tobytes())
    return "sha256:" + digest.hexdigest()


def _contests(benchmark: Benchmark, contests: Contests, field: str) -> dict[str, Contest | str]:
    named = {f.contest_problem for f in benchmark.facts.values() if f.contest_problem}
    if not named:
        raise BadConfig(
            f"{benchmark.name} has contests, and none of its problems says which problem of which contest it is: give "
            "rows contest_id and index, or put their names into problems.json in the folder of contests",
            field=f"{field}.contests",
        )
    return {name: contests.contest(name) for name in sorted({contest_of(problem) for problem in named}, key=int)}
