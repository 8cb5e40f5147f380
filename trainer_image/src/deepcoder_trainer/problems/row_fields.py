"""Reads single fields of rows as the known layouts write them: statements, tests, programs, dates, limits.

Pure. A field that cannot be read is a RowError that names it and the fix.
"""

from __future__ import annotations

import ast
import datetime
import re
from collections.abc import Mapping
from typing import Any

from deepcoder_contracts.judge import Kind
from deepcoder_trainer.problems import plain_pickle
from deepcoder_trainer.problems.extract import last_fenced_block
from deepcoder_trainer.problems.json_text import TooManyValues, value_of
from deepcoder_trainer.problems.record import Test
from deepcoder_trainer.problems.rows import RowError, json_value, released_tests

Fields = Mapping[str, Any]

_FN_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?\Z", re.ASCII)
_NOTED = (
    "difficulty",
    "rating",
    "url",
    "name",
    "title",
    "platform",
    "question_id",
    "contest_id",
    "in_source_id",
    "problem_id",
)
_LONGEST_LITERAL = 4 << 20
"""Longest Python literal that is parsed: Python's parser takes a hundred times a text's size."""


def text_of(row: Fields, field: str) -> str:
    """Return a field's text, which may be empty or null: a separate filter counts these."""
    value = "" if row.get(field) is None else row[field]
    if not isinstance(value, str):
        raise RowError(f"{field}: not a text: give the statement as a string")
    return value


def tests_of(value: Any, field: str) -> tuple[tuple[Test, ...], str | None]:
    """Return the tests of a released layout, as a value or its JSON text, and the function's name if they name one."""
    if isinstance(value, str):
        value = json_value(value, field)
    if value is None:
        return (), None
    tests, fn_name = released_tests(value, field)
    return tuple((t["input"], t["output"]) for t in tests), fn_name


def metadata_of(row: Fields) -> Fields:
    """Return the row's metadata, given as an object or as its JSON text."""
    value = row.get("metadata")
    value = json_value(value, "metadata") if isinstance(value, str) and value.strip() else value
    return value if isinstance(value, Mapping) else {}


def lacks_function(test: Any) -> bool:
    """Whether a test is functional and does not name its function."""
    if not isinstance(test, Mapping) or test.get("testtype") != "functional" or test.get("fn_name"):
        return False
    own = test.get("metadata")
    return not (isinstance(own, Mapping) and own.get("func_name"))


def function_of(fn_name: str | None, field: str) -> dict[str, Any]:
    """Return the fields of a Record of a problem with this function; none without a function."""
    if fn_name is None:
        return {}
    if not _FN_NAME.match(fn_name):
        raise RowError(f"{field}: {fn_name[:60]!r} is not a function name: give one name, or Class.method")
    return {"kind": Kind.FUNCTION, "fn_name": fn_name}


def cases_of(row: Fields, field: str) -> list[Fields]:
    """Return LiveCodeBench's test cases, given as JSON text or packed."""
    value = row.get(field)
    if isinstance(value, str):
        value = _unpacked(value, field)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(v, Mapping) for v in value):
        raise RowError(f"{field}: not a list of test cases: give [{{input, output, testtype}}]")
    return value


def _unpacked(text: str, field: str) -> Any:
    if text.lstrip()[:1] in ("[", "{"):
        return json_value(text, field)
    if not text.strip():
        return None
    try:
        value = plain_pickle.decode(text)
    except plain_pickle.Damaged as error:
        raise RowError(f"{field}: {error}: it is not read; give the tests as JSON text") from None
    return json_value(value, field) if isinstance(value, str) else value


def solutions_of(value: Any) -> tuple[str, ...]:
    """Return the programs of a list, of JSON text of a list, or of a single text, without their fences."""
    if isinstance(value, str):
        try:
            decoded = value_of(value)
        except (ValueError, RecursionError):
            decoded = value
        value = decoded if isinstance(decoded, list) else [value]
    if not isinstance(value, list):
        return ()
    programs = (v for v in value if isinstance(v, str) and v.strip())
    return tuple(dict.fromkeys(last_fenced_block(p) or p for p in programs))


def literal_of(text: str, field: str) -> Any:
    """Parse JSON text, or a Python literal. Raises RowError."""
    try:
        return value_of(text)
    except TooManyValues as error:
        raise RowError(f"{field}: {error}") from None
    except (ValueError, RecursionError) as error:
        if len(text) > _LONGEST_LITERAL:
            raise RowError(f"{field}: not JSON ({error}): give it as a JSON string") from None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise RowError(f"{field}: neither JSON nor a Python literal ({type(error).__name__}): fix it") from None


def date_of(value: Any, field: str) -> datetime.date | None:
    """Return a date that is given as a date, as ISO text, or in seconds since 1970. Raises RowError."""
    if isinstance(value, datetime.datetime):
        return value.date()
    if isinstance(value, datetime.date) or value is None:
        return value
    try:
        if isinstance(value, int | float):
            return datetime.datetime.fromtimestamp(value, datetime.UTC).date()
        return datetime.datetime.fromisoformat(str(value)).date()
    except (ValueError, OverflowError, OSError):
        raise RowError(f"{field}: {str(value)[:40]!r} is not a date: write YYYY-MM-DD") from None


def limit_of(row: Fields, field: str, most: float) -> float | None:
    """Return a number above 0 and at most `most`, or None if the row has none."""
    value = row.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise RowError(f"{field}: {str(value)[:40]!r}: give a number above 0 and at most {most:g}")
    return float(value)


def noted(row: Fields) -> dict[str, Any]:
    """Return the fields that are kept as the problem's metadata."""
    return {key: row[key] for key in _NOTED if isinstance(row.get(key), str | int | float) and row[key] != ""}
