"""The sentence below a field describes it wherever a schema is asked for, and is not looked for before."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import BaseModel, Field
from pydantic.alias_generators import to_camel

from deepcoder_contracts.sentences import Described, sentences


class Base(BaseModel, alias_generator=to_camel):
    first_field: int
    """Of the base,
    in two lines."""

    said_again: int
    """Not this."""


class Inner(BaseModel):
    """What its type says."""


class Whole(Base):
    said_again: int
    """But this."""
    inner: Inner | None = None
    """Of what it refers to."""
    described: int = Field(0, description="By its field.")
    """Not this either."""
    bare: int = 0


def test_a_type_has_the_sentences_of_those_it_is_made_from_and_its_own_where_both_speak() -> None:
    assert sentences(Whole) == {
        "first_field": "Of the base,\nin two lines.",
        "said_again": "But this.",
        "inner": "Of what it refers to.",
        "described": "Not this either.",
    }


def test_a_schema_describes_each_property_under_the_name_it_has_there() -> None:
    properties = Whole.model_json_schema(schema_generator=Described)["properties"]
    assert {name: told.get("description") for name, told in properties.items()} == {
        "firstField": "Of the base,\nin two lines.",
        "saidAgain": "But this.",
        "inner": "Of what it refers to.",
        "described": "By its field.",
        "bare": None,
    }


@pytest.mark.parametrize("module", ["api.run", "api.sandboxpool", "judge", "manifest", "stage"])
def test_no_source_is_read_to_load_the_types(module: str) -> None:
    program = (
        "import inspect\n"
        "def refuse(*_): raise AssertionError('a source was read')\n"
        "inspect.findsource = inspect.getsource = inspect.getsourcelines = refuse\n"
        f"import deepcoder_contracts.{module}\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
