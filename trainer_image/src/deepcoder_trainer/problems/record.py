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
    """`data_source` of the published schema; decides tests, time limit and scoring of training."""
    prompt: str
    """What the model is asked."""
    statement: str
    """The problem alone, without the instructions around it: what is compared."""
    tests: tuple[Test, ...]
    id: str = ""
    """Id in the curated set; empty until it is given one."""
    place: str = ""
    """File and row."""
    kind: Kind = Kind.STDIN
    fn_name: str | None = None
    time_limit_s: float | None = None
    """None: the source's."""
    memory_limit_mb: int = 1024
    scoring: Scoring | None = None
    """None: the source's."""
    float_tolerance: float | None = None
    """How far numbers in an output may be off."""
    solutions: tuple[str, ...] = ()
    """Official programs; one that passes is enough."""
    solutions_expected: bool = True
    """Whether the layout has official solutions at all."""
    answer: str | None = None
    """Mathematics: the final answer, instead of tests."""
    date: datetime.date | None = None
    """When it was published, where the layout says."""
    metadata: Mapping[str, Any] | None = None

    def problem(self, *, every_test: bool = False) -> Problem:
        """As training and evaluation grade it: by the rule of its source, or by every test that it has."""
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
        """As curation judges it: by the tests that training would choose, compared strictly."""
        return replace(self.problem(), scoring=Scoring.STRICT)

    def line(self) -> bytes:
        """One line of JSON. Raises UnicodeEncodeError for text that is none (half of a surrogate pair)."""
        values = {k: v for k, v in vars(self).items() if v is not None}
        if self.date is not None:
            values["date"] = self.date.isoformat()
        return json.dumps(values, ensure_ascii=False).encode() + b"\n"

    @staticmethod
    def of_line(line: bytes) -> Record:
        """The record of `line`."""
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
        """The same at its place in a file; `ordinal` counts the rows of its source and names those without a name."""
        name = self.id or f"{self.source}-{split}-{ordinal}"
        return replace(self, id=name, place=place)
