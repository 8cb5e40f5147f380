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

from collections.abc import Callable, Mapping
from pathlib import Path

from deepcoder_contracts.curation import Layout
from deepcoder_trainer.problems.extract import last_fenced_block
from deepcoder_trainer.problems.path_metadata import SOURCES, source_of
from deepcoder_trainer.problems.record import Record
from deepcoder_trainer.problems.row_fields import (
    Fields,
    cases_of,
    date_of,
    function_of,
    lacks_function,
    limit_of,
    literal_of,
    metadata_of,
    noted,
    solutions_of,
    tests_of,
    text_of,
)
from deepcoder_trainer.problems.rows import LONGEST_ANSWER, RowError, json_value, parsed_row
from deepcoder_trainer.problems.statement import bare, codeforces_prompt, livecodebench_prompt, mathematics_prompt

Reader = Callable[[Fields, str], Record]
"""(row, name of the input) → Record. The name is the source if the layout does not determine it."""


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
    question = text_of(row, "question")
    tests, fn_name = tests_of(row["input_output"], "input_output")
    return Record(
        source=_SOURCE_BY[Layout.TACO],
        prompt=question,
        statement=question,
        tests=tests,
        **function_of(fn_name, "input_output"),
        solutions=solutions_of(row.get("solutions")),
        metadata=noted(row),
    )


def synthetic(row: Fields, name: str) -> Record:
    """Read SYNTHETIC-1: tests in verification_info, as JSON or Python text; the solution is a fenced block."""
    info = row["verification_info"]
    if isinstance(info, str):
        info = literal_of(info, "verification_info")
    if not isinstance(info, Mapping):
        raise RowError("verification_info: not an object: give {language, test_cases}")
    language = info.get("language", "python")
    prompt = text_of(row, "prompt")
    if language != "python":
        raise Unwanted(f"a problem for {language}", bare(prompt))
    tests, fn_name = tests_of(info.get("test_cases"), "verification_info.test_cases")
    solution = row.get("gold_standard_solution")
    code = last_fenced_block(solution) if isinstance(solution, str) else None
    return Record(
        source=_SOURCE_BY[Layout.SYNTHETIC1],
        prompt=prompt,
        statement=bare(prompt),
        tests=tests,
        **function_of(fn_name, "verification_info.test_cases"),
        solutions=() if code is None else (code,),
        metadata=noted(row),
    )


def livecodebench(row: Fields, name: str) -> Record:
    """Read LiveCodeBench: public tests as JSON, hidden tests as JSON or packed; the function's name is in metadata."""
    question, starter = text_of(row, "question_content"), str(row.get("starter_code") or "")
    cases = [*cases_of(row, "public_test_cases"), *cases_of(row, "private_test_cases")]
    function = metadata_of(row).get("func_name")
    tests, fn_name = tests_of(
        [{**case, "metadata": {"func_name": function}} for case in cases], "public_test_cases, private_test_cases"
    )
    return Record(
        source=_SOURCE_BY[Layout.LIVECODEBENCH],
        prompt=livecodebench_prompt(question, starter),
        statement=question,
        tests=tests,
        **function_of(fn_name, "metadata.func_name"),
        solutions_expected=False,
        date=date_of(row.get("contest_date"), "contest_date"),
        metadata=noted(row),
    )


def codeforces(row: Fields, name: str) -> Record:
    """Read Codeforces: a statement in parts, official tests or else the examples, and the problem's own limits.

    Problems that need a checker or a dialogue are Unwanted, because outputs alone do not decide them.
    """
    statement, given, asked = (text_of(row, field) for field in ("description", "input_format", "output_format"))
    whole = "\n".join(part for part in (statement, given, asked) if part.strip())
    if not statement.strip():
        raise Unwanted("a problem without a description", whole)
    for field, what in (("generated_checker", "a checker"), ("interaction_format", "a dialogue")):
        if row.get(field):
            raise Unwanted(f"a problem that is judged by {what} ({field}), not by its output", whole)
    if row.get("input_mode") == "file":
        raise Unwanted("a problem that reads and writes files (input_mode)", whole)
    examples = tests_of(row.get("examples"), "examples")[0]
    tests = tests_of(row.get("official_tests"), "official_tests")[0] or examples
    return Record(
        source=_SOURCE_BY[Layout.CODEFORCES],
        prompt=codeforces_prompt(statement, given, asked, str(row.get("note") or ""), examples),
        statement=whole,
        tests=tests,
        time_limit_s=limit_of(row, "time_limit", 600.0),
        # Python needs more than the smallest limits on Codeforces.
        memory_limit_mb=max(16, int(limit_of(row, "memory_limit", 65536.0) or 1024)),
        solutions_expected=False,
        date=date_of(row.get("contest_start"), "contest_start"),
        metadata=noted(row),
    )


def released(row: Fields, name: str) -> Record:
    """Read the released DeepCoder set: one configuration per source, which its rows do not name. If functional tests do
    not name their function, metadata next to the tests does."""
    problem = text_of(row, "problem")
    value = row["tests"]
    value = json_value(value, "tests") if isinstance(value, str) else value
    if isinstance(value, list) and any(lacks_function(test) for test in value):
        beside = {"metadata": {"func_name": metadata_of(row).get("func_name")}}
        value = [{**test, **beside} if lacks_function(test) else test for test in value]
    tests, fn_name = tests_of(value, "tests")
    source = SOURCES.get(name, name)
    is_livecodebench = source == "livecodebench"
    starter = str(row.get("starter_code") or "")
    return Record(
        source=source,
        prompt=livecodebench_prompt(problem, starter) if is_livecodebench else problem,
        statement=bare(problem),
        tests=tests,
        **function_of(fn_name, "tests"),
        solutions=solutions_of(row.get("solutions")),
        solutions_expected="solutions" in row,
        metadata=noted(row),
    )


def mathematics(row: Fields, name: str) -> Record:
    """Read a question with a final answer, as in DeepScaleR and AIME."""
    problem = text_of(row, "problem")
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
        metadata=noted(row),
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


def _without_solutions(source: str) -> bool:
    return source in ("livecodebench", "lcbv5", "codeforces")
