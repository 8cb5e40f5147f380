"""Reads benchmark problem sets in their published layouts, with the attributes by which results are grouped.

Our own layout and the published training schema are read exactly as for training. HumanEval and HumanEval+ have their
own reader. LiveCodeBench, the released Codeforces set, mathematics and the other layouts are read as for curation
(problems/readers.py) and judged by the rule of their source (problems/tests.py). If a folder has files of several
splits, the test split is read. Every row must be readable, because a benchmark that silently shrinks is a different
benchmark. Rows that cannot be decided by outputs alone are left out, and this is reported.
"""

from __future__ import annotations

import datetime
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deepcoder_contracts.curation import Layout
from deepcoder_contracts.stage import EvaluationDataset
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.evaluation.codeforces import contest_of
from deepcoder_trainer.problems.dataset import dataset_digest
from deepcoder_trainer.problems.files import DatasetError, data_files, place_of, read_rows
from deepcoder_trainer.problems.humaneval import humaneval_problem, is_humaneval
from deepcoder_trainer.problems.path_metadata import EVALUATION
from deepcoder_trainer.problems.readers import Unwanted, reader_for, source_of_released
from deepcoder_trainer.problems.rows import RowError, check_judgeable, problem_from_row
from deepcoder_trainer.types import Problem

SAMPLE_TESTS = (
    "problems are judged by the statement's sample tests alone, not by Codeforces' hidden tests: an upper bound, not "
    "what submissions would get"
)

PART_OF_TESTS = "problems are judged by a part of Codeforces' tests, since the set leaves out long ones: an upper bound"

_DATED = re.compile(r"\d{4}-\d{2}")


@dataclass(frozen=True)
class Facts:
    """Attributes of a problem by which results are grouped."""

    difficulty: str | None = None
    date: datetime.date | None = None
    contest_problem: str | None = None
    """Codeforces: contest and problem index, as in 1234A."""
    official_tests: bool = False
    """Codeforces: the problem has official tests."""
    part_of_tests: bool = False
    """Codeforces: the set has only some of the official tests."""


@dataclass(frozen=True)
class Benchmark:
    """A problem set, in the order of its files."""

    name: str
    problems: tuple[Problem, ...]
    facts: Mapping[str, Facts]
    """Problem id to its attributes."""
    digest: str
    """Digest of its files."""
    notes: tuple[str, ...] = ()
    """Notes that must accompany its figures."""


def load_benchmark(path: Path, settings: EvaluationDataset, contest_problems: Sequence[str] | None = None) -> Benchmark:
    """Read a file or folder. `contest_problems` names its problems in order. Raises DatasetError, BadConfig."""
    files = data_files(path, EVALUATION)
    problems: list[Problem] = []
    facts: dict[str, Facts] = {}
    places: dict[str, str] = {}
    unwanted: Counter[str] = Counter()
    count = 0
    for file in files:
        for row in read_rows(file):
            place = place_of(file, path, row.number)
            named = contest_problems[count] if contest_problems and count < len(contest_problems) else None
            count += 1
            try:
                problem, known = _read(row.fields, file, path, settings.name, count)
                known = _with_contest(known, row.fields, named)
            except Unwanted as reason:
                unwanted[str(reason)] += 1
                continue
            except ValueError as error:  # a RowError is one
                raise DatasetError(f"{place}: {error}") from None
            if problem.id in places:
                raise DatasetError(
                    f"{place}: id: {problem.id!r} was used at {places[problem.id]}: give each problem an id of its own"
                )
            places[problem.id] = place
            if _within(known.date, settings, place):
                problems.append(replace(problem, extraction=settings.extraction))
                facts[problem.id] = known
    if contest_problems is not None and len(contest_problems) != count:
        raise BadConfig(
            f"problems.json names {len(contest_problems)} problems, {settings.name} has {count}: name them in order",
            field="contests",
        )
    if not problems:
        window = f" from {settings.since} to {settings.until}" if settings.since or settings.until else ""
        raise DatasetError(f"{path}: no problem in it{window}: check the dataset's uri, since and until")
    return Benchmark(
        settings.name,
        tuple(problems),
        facts,
        f"sha256:{dataset_digest(path, files)}",
        _notes(problems, facts, unwanted),
    )


def _read(row: Mapping[str, Any], file: Path, root: Path, name: str, number: int) -> tuple[Problem, Facts]:
    if is_humaneval(row):
        return humaneval_problem(row), Facts()
    beside = {**_metadata(row.get("metadata")), **row}
    layout, reader = reader_for(row)
    known = _facts(beside)
    if layout in (Layout.PUBLISHED, Layout.OWN):
        return problem_from_row(row), known
    record = reader(row, source_of_released(row, file, root, name) if layout is Layout.RELEASED else name)
    official = layout is Layout.CODEFORCES and bool(row.get("official_tests"))
    if layout is Layout.CODEFORCES and not record.tests:
        raise Unwanted("a problem without tests", record.statement)
    if record.answer is None and not record.tests:
        raise RowError("tests: none: a problem without tests cannot be judged")
    record = replace(record, id=str(_id(row) or f"{name}-{number}"))
    known = replace(
        known,
        date=record.date or known.date,
        official_tests=official,
        part_of_tests=official and row.get("official_tests_complete") is False,
    )
    problem = record.problem(every_test=official)
    check_judgeable(problem)
    return problem, known


def _metadata(value: Any) -> Mapping[str, Any]:
    """Return metadata, which some sets give as JSON text. Invalid metadata counts as empty, as none is required."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, Mapping) else {}


def _id(row: Mapping[str, Any]) -> Any:
    named = (row.get(field) for field in ("question_id", "task_id", "problem_id", "id", "ID"))
    return next((value for value in named if isinstance(value, str | int) and value != ""), None)


def _facts(row: Mapping[str, Any]) -> Facts:
    difficulty = row.get("difficulty")
    day = next((row[field] for field in ("contest_date", "date") if row.get(field)), None)
    return Facts(
        difficulty=str(difficulty).lower() if isinstance(difficulty, str | int) and difficulty != "" else None,
        date=_day(day),
    )


def _day(value: Any) -> datetime.date | None:
    if isinstance(value, datetime.datetime):
        return value.date()
    if isinstance(value, datetime.date):
        return value
    if not isinstance(value, str) or not _DATED.match(value):
        return None
    try:
        return datetime.datetime.fromisoformat(value).date()
    except ValueError:
        raise RowError(f"date: {value[:40]!r} is not a date: write YYYY-MM-DD") from None


def _with_contest(facts: Facts, row: Mapping[str, Any], named: str | None) -> Facts:
    if named is not None:
        contest_of(named)
        return replace(facts, contest_problem=named)
    contest, index = row.get("contest_id"), row.get("index")
    if not isinstance(contest, str | int) or not isinstance(index, str):
        return facts
    try:
        contest_of(f"{contest}{index}")
    except ValueError:  # a contest that numbers its problems, or one of another site; there are no standings for it
        return facts
    return replace(facts, contest_problem=f"{contest}{index}")


def _within(day: datetime.date | None, settings: EvaluationDataset, place: str) -> bool:
    if settings.since is None and settings.until is None:
        return True
    if day is None:
        raise DatasetError(f"{place}: date: missing, and {settings.name} has a window: leave out since and until")
    # YYYY-MM-DD can be compared as text.
    return (settings.since or "") <= day.isoformat() and (settings.until is None or day.isoformat() < settings.until)


def _notes(problems: Sequence[Problem], facts: Mapping[str, Facts], unwanted: Mapping[str, int]) -> tuple[str, ...]:
    notes = [f"{count} problems are left out: {reason}" for reason, count in sorted(unwanted.items())]
    of_codeforces = [p for p in problems if p.source == "codeforces" or facts[p.id].contest_problem]
    samples = [p for p in of_codeforces if not facts[p.id].official_tests]
    if samples:
        single = sum(len(p.tests) == 1 for p in samples)
        notes.append(f"{len(samples)} of {len(problems)} {SAMPLE_TESTS} ({single} have a single one)")
    if parts := sum(facts[p.id].part_of_tests for p in problems):
        notes.append(f"{parts} of {len(problems)} {PART_OF_TESTS}")
    return tuple(notes)
