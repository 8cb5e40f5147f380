"""Each field of a problem set's row that a page or an example names exists; a row with another field is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deepcoder_trainer.problems.rows import ProblemRow

ROOT = Path(__file__).resolve().parents[2]
_ROW = re.compile(r"A row is one JSON object with (?P<fields>[^.]*)")
_NAME = re.compile(r"`(\w+)`")


@pytest.mark.parametrize("place", ["docs/howto/own.md", "examples/variations/own-dataset.yaml"])
def test_fields_of_a_row_that_are_named_exist(place: str) -> None:
    described = _ROW.search((ROOT / place).read_text())
    assert described is not None
    names = set(_NAME.findall(described["fields"]))
    assert names >= {"id", "prompt", "tests"}
    assert names <= {field.alias or name for name, field in ProblemRow.model_fields.items()}
