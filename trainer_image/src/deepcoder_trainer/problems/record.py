"""One problem during curation, whatever layout it came in.

A Record has more than training needs: its place in the input, all its official solutions, and the bare statement by
which duplicates are found. It is written to the spool as one JSON object per line.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from deepcoder_contracts.judge import Kind, Scoring, TestCase
from deepcoder_trainer.problems.tests import policy_for, select_tests
from deepcoder_trainer.types import Problem

Test = tuple[str, str]
"""Input and expected output, as in the judge's TestCase."""


@dataclass(frozen=True)
class Record:
    """A problem with its provenance."""

    source: str
    """`data_source` of the published schema. It determines tests, time limit and scoring in training."""
    prompt: str
    """The user message for the model."""
    statement: str
    """The problem without the instructions around it, for comparisons."""
    tests: tuple[Test, ...]
    id: str = ""
    """Id in the curated set; empty until it is assigned."""
    place: str = ""
    """File and row number."""
    kind: Kind = Kind.STDIN
    fn_name: str | None = None
    time_limit_s: float | None = None
    """None: the source's."""
    memory_limit_mb: int = 1024
    scoring: Scoring | None = None
    """None: the source's."""
    float_tolerance: float | None = None
    """Relative and absolute tolerance of numbers in an output."""
    solutions: tuple[str, ...] = ()
    """Official programs. One that passes is enough."""
    solutions_expected: bool = True
    """Whether the layout has official solutions."""
    answer: str | None = None
    """Mathematics: the final answer, instead of tests."""
    date: datetime.date | None = None
    """Date of publication, if the layout has one."""
    metadata: Mapping[str, Any] | None = None

    def problem(self, *, every_test: bool = False) -> Problem:
        """Return the problem as training and evaluation grade it: by its source's choice of tests, or by all tests."""
        policy = policy_for(self.source)
        tests = [TestCase.model_construct(input=i, output=o) for i, o in self.tests]
        return Problem(
            id=self.id,
            source=self.source,
            prompt=self.prompt,
            tests=tuple(tests) if every_test else select_tests(self.source, tests),
            kind=self.kind,
            fn_name=self.fn_name,
            time_limit_s=self.time_limit_s if self.time_limit_s is not None else policy.time_limit_s,
            memory_limit_mb=self.memory_limit_mb,
            scoring=self.scoring if self.scoring is not None else policy.scoring,
            answer=self.answer,
            float_tolerance=self.float_tolerance,
        )

    def strict(self) -> Problem:
        """Return the problem as curation judges it: by the tests of training, compared strictly."""
        return replace(self.problem(), scoring=Scoring.STRICT)

    def line(self) -> bytes:
        """Return the record as one line of JSON. Raises UnicodeEncodeError for half of a surrogate pair."""
        values = {k: v for k, v in vars(self).items() if v is not None}
        if self.date is not None:
            values["date"] = self.date.isoformat()
        # The metadata of a Parquet file may hold what JSON does not have, as a date: it is kept as text.
        return json.dumps(values, ensure_ascii=False, default=str).encode() + b"\n"

    @staticmethod
    def of_line(line: bytes) -> Record:
        """Parse a line that `line` returned."""
        values = json.loads(line)
        date, scoring = values.get("date"), values.get("scoring")
        values |= {
            "tests": tuple((i, o) for i, o in values["tests"]),
            "solutions": tuple(values["solutions"]),
            "kind": Kind(values["kind"]),
            "scoring": Scoring(scoring) if scoring else None,
            "date": datetime.date.fromisoformat(date) if date else None,
        }
        return Record(**values)

    def at(self, place: str, ordinal: int, split: str) -> Record:
        """Return the record with its place in a file. An empty id is made from `ordinal`, its source's row number."""
        name = self.id or f"{self.source}-{split}-{ordinal}"
        return replace(self, id=name, place=place)
