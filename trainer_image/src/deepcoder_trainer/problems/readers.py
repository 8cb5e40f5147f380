"""Reads a row of any known layout as a Record. The columns tell which layout it is.

| layout | columns | reader |
|---|---|---|
| our JSON Lines | id, prompt, tests | own |
| the published schema | data_source, prompt, reward_model | published |
| TACO, TACO-verified | question, input_output, solutions | taco |
| SYNTHETIC-1, verifiable-coding-problems | prompt, verification_info, gold_standard_solution | synthetic |
| LiveCodeBench code_generation(_lite) | question_content, public_test_cases, private_test_cases | livecodebench |
| Codeforces (open-r1/codeforces) | description, input_format, output_format, of which some may be null | codeforces |
| the released DeepCoder set, including its Codeforces problems | problem, tests | released |
| DeepScaleR and other mathematics | problem, answer | mathematics |

Pure. An unusable row is a RowError that names the field. A row of a kind that is not trained on (a program in another
language) is Unwanted, which is counted separately.
"""

from __future__ import annotations

import ast
import datetime
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deepcoder_contracts.curation import Layout
from deepcoder_contracts.judge import Kind
from deepcoder_trainer.problems import plain_pickle
from deepcoder_trainer.problems.extract import last_fenced_block
from deepcoder_trainer.problems.json_text import TooManyValues, value_of
from deepcoder_trainer.problems.path_metadata import SOURCES, source_of
from deepcoder_trainer.problems.record import Record, Test
from deepcoder_trainer.problems.rows import (
    LONGEST_ANSWER,
    RowError,
    json_value,
    parsed_row,
    released_tests,
)
from deepcoder_trainer.problems.statement import bare, codeforces_prompt, livecodebench_prompt, mathematics_prompt

Fields = Mapping[str, Any]
Reader = Callable[[Fields, str], Record]
"""(row, name of the input) → Record. The name is the source if the layout does not determine it."""

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


class Unwanted(ValueError):
    """A valid row of a kind that is not trained on. The message says why; `statement` is its problem."""

    def __init__(self, reason: str, statement: str) -> None:
        super().__init__(reason)
        self.statement = statement


def reader_for(row: Fields, layout: Layout | None = None) -> tuple[Layout, Reader]:
    """Return layout and reader of a row: the given layout, or the first that its columns match. Raises RowError."""
    for name, columns, reader in _LAYOUTS:
        if layout in (None, name) and columns <= row.keys():
            return name, reader
    if layout is not None:
        wanted = next(columns for name, columns, _ in _LAYOUTS if name == layout)
        raise RowError(f"columns {sorted(row)[:12]}: layout {layout} has {', '.join(sorted(wanted))}")
    raise RowError(
        f"columns {sorted(row)[:12]}: of no known layout: give id, prompt and tests (our layout), or one of "
        + "; ".join(f"{name}: {', '.join(sorted(columns))}" for name, columns, _ in _LAYOUTS)
    )


def layout_of(row: Fields) -> Layout | None:
    """Return the first layout that a row's columns match, or None."""
    return next((name for name, columns, _ in _LAYOUTS if columns <= row.keys()), None)


def source_of_released(row: Fields, file: Path, root: Path, name: str | None = None) -> str:
    """Return the source of a row of the released set, which determines how its tests are graded. Raises RowError.

    Rows usually do not contain it. It is the row's `data_source` if there is one, otherwise the source named by the
    file or a folder below `root`, otherwise the set's `name`.
    """
    said = row.get("data_source")
    if isinstance(said, str) and said:
        return said
    if (found := source_of(file, root)) is not None:
        return found
    if name is not None and name in SOURCES:
        return name
    raise RowError(
        f"data_source: missing, and neither folder nor file{' nor set' if name else ''} is named {', '.join(SOURCES)}: "
        "tests are graded by their source: keep the hub's folders, or give rows a data_source"
    )


def source_by(layout: Layout, name: str) -> str | None:
    """Return the source of all rows of a layout, readable or not; None if each row names its own. `name` is the
    reader's second argument."""
    if layout in (Layout.OWN, Layout.PUBLISHED):
        return None
    return SOURCES.get(name, name) if layout is Layout.RELEASED else _SOURCE_BY.get(layout, name)


_SOURCE_BY = {
    Layout.TACO: "taco",
    Layout.SYNTHETIC1: "primeintellect",
    Layout.LIVECODEBENCH: "livecodebench",
    Layout.CODEFORCES: "codeforces",
}


def own(row: Fields, name: str) -> Record:
    """Read our JSON Lines, or the published schema, as in training."""
    parsed = parsed_row(row)
    return Record(
        source=parsed.source,
        id=parsed.id,
        prompt=parsed.prompt,
        statement=bare(parsed.prompt),
        tests=tuple((t.input, t.output) for t in parsed.tests or ()),
        answer=parsed.answer,
        kind=parsed.kind,
        fn_name=parsed.fn_name,
        time_limit_s=parsed.time_limit_s,
        memory_limit_mb=parsed.memory_limit_mb,
        scoring=parsed.scoring,
        float_tolerance=parsed.float_tolerance,
        solutions=() if parsed.solution is None else (parsed.solution,),
        solutions_expected="reward_model" not in row
        and parsed.answer is None
        and not _without_solutions(parsed.source),
        metadata=parsed.metadata,
    )


def taco(row: Fields, name: str) -> Record:
    """Read TACO: tests as JSON text {inputs, outputs, fn_name?}, solutions as a list or as JSON text of a list."""
    question = _text(row, "question")
    tests, fn_name = _tests(row["input_output"], "input_output")
    return Record(
        source=_SOURCE_BY[Layout.TACO],
        prompt=question,
        statement=question,
        tests=tests,
        **_function(fn_name, "input_output"),
        solutions=_solutions(row.get("solutions")),
        metadata=_noted(row),
    )


def synthetic(row: Fields, name: str) -> Record:
    """Read SYNTHETIC-1: tests in verification_info, as JSON or Python text; the solution is a fenced block."""
    info = row["verification_info"]
    if isinstance(info, str):
        info = _literal(info, "verification_info")
    if not isinstance(info, Mapping):
        raise RowError("verification_info: not an object: give {language, test_cases}")
    language = info.get("language", "python")
    prompt = _text(row, "prompt")
    if language != "python":
        raise Unwanted(f"a problem for {language}", bare(prompt))
    tests, fn_name = _tests(info.get("test_cases"), "verification_info.test_cases")
    solution = row.get("gold_standard_solution")
    code = last_fenced_block(solution) if isinstance(solution, str) else None
    return Record(
        source=_SOURCE_BY[Layout.SYNTHETIC1],
        prompt=prompt,
        statement=bare(prompt),
        tests=tests,
        **_function(fn_name, "verification_info.test_cases"),
        solutions=() if code is None else (code,),
        metadata=_noted(row),
    )


def livecodebench(row: Fields, name: str) -> Record:
    """Read LiveCodeBench: public tests as JSON, hidden tests as JSON or packed; the function's name is in metadata."""
    question, starter = _text(row, "question_content"), str(row.get("starter_code") or "")
    cases = [*_cases(row, "public_test_cases"), *_cases(row, "private_test_cases")]
    function = _metadata(row).get("func_name")
    tests, fn_name = _tests(
        [{**case, "metadata": {"func_name": function}} for case in cases], "public_test_cases, private_test_cases"
    )
    return Record(
        source=_SOURCE_BY[Layout.LIVECODEBENCH],
        prompt=livecodebench_prompt(question, starter),
        statement=question,
        tests=tests,
        **_function(fn_name, "metadata.func_name"),
        solutions_expected=False,
        date=_date(row.get("contest_date"), "contest_date"),
        metadata=_noted(row),
    )


def codeforces(row: Fields, name: str) -> Record:
    """Read Codeforces: a statement in parts, official tests or else the examples, and the problem's own limits.

    Problems that need a checker or a dialogue are Unwanted, because outputs alone do not decide them.
    """
    statement, given, asked = (_text(row, field) for field in ("description", "input_format", "output_format"))
    whole = "\n".join(part for part in (statement, given, asked) if part.strip())
    if not statement.strip():
        raise Unwanted("a problem without a description", whole)
    for field, what in (("generated_checker", "a checker"), ("interaction_format", "a dialogue")):
        if row.get(field):
            raise Unwanted(f"a problem that is judged by {what} ({field}), not by its output", whole)
    if row.get("input_mode") == "file":
        raise Unwanted("a problem that reads and writes files (input_mode)", whole)
    examples = _tests(row.get("examples"), "examples")[0]
    tests = _tests(row.get("official_tests"), "official_tests")[0] or examples
    return Record(
        source=_SOURCE_BY[Layout.CODEFORCES],
        prompt=codeforces_prompt(statement, given, asked, str(row.get("note") or ""), examples),
        statement=whole,
        tests=tests,
        time_limit_s=_limit(row, "time_limit", 600.0),
        # Python needs more than the smallest limits on Codeforces.
        memory_limit_mb=max(16, int(_limit(row, "memory_limit", 65536.0) or 1024)),
        solutions_expected=False,
        date=_date(row.get("contest_start"), "contest_start"),
        metadata=_noted(row),
    )


def released(row: Fields, name: str) -> Record:
    """Read the released DeepCoder set: one configuration per source, which its rows do not name. If functional tests do
    not name their function, metadata next to the tests does."""
    problem = _text(row, "problem")
    value = row["tests"]
    value = json_value(value, "tests") if isinstance(value, str) else value
    if isinstance(value, list) and any(_lacks_function(test) for test in value):
        beside = {"metadata": {"func_name": _metadata(row).get("func_name")}}
        value = [{**test, **beside} if _lacks_function(test) else test for test in value]
    tests, fn_name = _tests(value, "tests")
    source = SOURCES.get(name, name)
    is_livecodebench = source == "livecodebench"
    starter = str(row.get("starter_code") or "")
    return Record(
        source=source,
        prompt=livecodebench_prompt(problem, starter) if is_livecodebench else problem,
        statement=bare(problem),
        tests=tests,
        **_function(fn_name, "tests"),
        solutions=_solutions(row.get("solutions")),
        solutions_expected="solutions" in row,
        metadata=_noted(row),
    )


def mathematics(row: Fields, name: str) -> Record:
    """Read a question with a final answer, as in DeepScaleR and AIME."""
    problem = _text(row, "problem")
    answer = row["answer"]
    if not isinstance(answer, str | int | float) or isinstance(answer, bool) or not str(answer).strip():
        raise RowError("answer: missing: give the final answer as text or a number")
    if len(str(answer)) > LONGEST_ANSWER:
        raise RowError(f"answer: {len(str(answer))} characters: a final answer has at most {LONGEST_ANSWER}")
    return Record(
        source=name,
        prompt=mathematics_prompt(problem),
        statement=problem,
        tests=(),
        answer=str(answer).strip(),
        solutions_expected=False,
        metadata=_noted(row),
    )


_LAYOUTS: tuple[tuple[Layout, frozenset[str], Reader], ...] = (
    (Layout.PUBLISHED, frozenset({"reward_model", "prompt"}), own),
    (Layout.LIVECODEBENCH, frozenset({"question_content", "public_test_cases"}), livecodebench),
    (Layout.SYNTHETIC1, frozenset({"prompt", "verification_info"}), synthetic),
    (Layout.TACO, frozenset({"question", "input_output"}), taco),
    (Layout.CODEFORCES, frozenset({"description", "input_format", "output_format"}), codeforces),
    (Layout.CODEFORCES, frozenset({"contest_id", "contest_name", "index"}), codeforces),  # if a part is null
    (Layout.OWN, frozenset({"id", "prompt"}), own),
    (Layout.RELEASED, frozenset({"problem", "tests"}), released),
    (Layout.MATHEMATICS, frozenset({"problem", "answer"}), mathematics),
)


def _text(row: Fields, field: str) -> str:
    """Return a field's text, which may be empty or null: a separate filter counts these."""
    value = "" if row.get(field) is None else row[field]
    if not isinstance(value, str):
        raise RowError(f"{field}: not a text: give the statement as a string")
    return value


def _tests(value: Any, field: str) -> tuple[tuple[Test, ...], str | None]:
    if isinstance(value, str):
        value = json_value(value, field)
    if value is None:
        return (), None
    tests, fn_name = released_tests(value, field)
    return tuple((t["input"], t["output"]) for t in tests), fn_name


def _metadata(row: Fields) -> Fields:
    """Return the row's metadata, given as an object or as its JSON text."""
    value = row.get("metadata")
    value = json_value(value, "metadata") if isinstance(value, str) and value.strip() else value
    return value if isinstance(value, Mapping) else {}


def _lacks_function(test: Any) -> bool:
    """Whether a test is functional and does not name its function."""
    if not isinstance(test, Mapping) or test.get("testtype") != "functional" or test.get("fn_name"):
        return False
    own = test.get("metadata")
    return not (isinstance(own, Mapping) and own.get("func_name"))


def _function(fn_name: str | None, field: str) -> dict[str, Any]:
    if fn_name is None:
        return {}
    if not _FN_NAME.match(fn_name):
        raise RowError(f"{field}: {fn_name[:60]!r} is not a function name: give one name, or Class.method")
    return {"kind": Kind.FUNCTION, "fn_name": fn_name}


def _cases(row: Fields, field: str) -> list[Fields]:
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


def _solutions(value: Any) -> tuple[str, ...]:
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


def _literal(text: str, field: str) -> Any:
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


_LONGEST_LITERAL = 4 << 20
"""Longest Python literal that is parsed: Python's parser takes a hundred times a text's size."""


def _date(value: Any, field: str) -> datetime.date | None:
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


def _limit(row: Fields, field: str, most: float) -> float | None:
    value = row.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise RowError(f"{field}: {str(value)[:40]!r}: give a number above 0 and at most {most:g}")
    return float(value)


def _noted(row: Fields) -> dict[str, Any]:
    return {key: row[key] for key in _NOTED if isinstance(row.get(key), str | int | float) and row[key] != ""}


def _without_solutions(source: str) -> bool:
    return source in ("livecodebench", "lcbv5", "codeforces")
