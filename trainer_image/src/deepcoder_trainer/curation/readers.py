"""A row of any known layout as a Record. Layouts are told apart by their columns.

| layout | columns | reader |
|---|---|---|
| our JSON Lines | id, prompt, tests | own |
| the published schema | data_source, prompt, reward_model | published |
| TACO, TACO-verified | question, input_output, solutions | taco |
| SYNTHETIC-1, verifiable-coding-problems | prompt, verification_info, gold_standard_solution | synthetic |
| LiveCodeBench code_generation(_lite) | question_content, public_test_cases, private_test_cases | livecodebench |
| the released DeepCoder set, Codeforces among it | problem, tests | released |
| DeepScaleR and other mathematics | problem, answer | mathematics |

Pure. A row that cannot be used is a RowError that names the field; one that is of another kind than is trained on
(a program in another language) is Unwanted, which is counted apart.
"""

from __future__ import annotations

import ast
import datetime
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from deepcoder_contracts.judge import Kind
from deepcoder_trainer.curation import plain_pickle
from deepcoder_trainer.curation.record import Record, Test
from deepcoder_trainer.curation.statement import bare, livecodebench_prompt, mathematics_prompt
from deepcoder_trainer.problems.extract import last_fenced_block
from deepcoder_trainer.problems.rows import (
    LONGEST_ANSWER,
    RowError,
    json_value,
    parsed_row,
    released_tests,
)

Fields = Mapping[str, Any]
Reader = Callable[[Fields, str], Record]
"""(row, name of the input) → Record. The name is the source where the layout does not say."""

_FN_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?\Z", re.ASCII)
_NOTED = ("difficulty", "url", "name", "title", "platform", "question_id", "contest_id", "in_source_id", "problem_id")


class Unwanted(ValueError):
    """A sound row that is not trained on, whatever its quality; the message says why."""


def reader_for(row: Fields) -> tuple[str, Reader]:
    """Name and reader of a row's layout. Raises RowError."""
    for name, columns, reader in _LAYOUTS:
        if columns <= row.keys():
            return name, reader
    raise RowError(
        f"columns {sorted(row)[:12]}: of no known layout: give id, prompt and tests (our layout), or one of "
        + "; ".join(f"{name}: {', '.join(sorted(columns))}" for name, columns, _ in _LAYOUTS)
    )


def own(row: Fields, name: str) -> Record:
    """Our JSON Lines, and the published schema: as training reads them."""
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
        solutions=() if parsed.solution is None else (parsed.solution,),
        solutions_expected="reward_model" not in row
        and parsed.answer is None
        and not _without_solutions(parsed.source),
        metadata=parsed.metadata,
    )


def taco(row: Fields, name: str) -> Record:
    """TACO: tests as JSON text {inputs, outputs, fn_name?}, solutions as a list or as JSON text of one."""
    question = _text(row, "question")
    tests, fn_name = _tests(row["input_output"], "input_output")
    return Record(
        source="taco",
        prompt=question,
        statement=question,
        tests=tests,
        **_function(fn_name, "input_output"),
        solutions=_solutions(row.get("solutions")),
        metadata=_noted(row),
    )


def synthetic(row: Fields, name: str) -> Record:
    """SYNTHETIC-1: tests below verification_info, as JSON or Python text; the solution is a fenced block."""
    info = row["verification_info"]
    if isinstance(info, str):
        info = _literal(info, "verification_info")
    if not isinstance(info, Mapping):
        raise RowError("verification_info: not an object: give {language, test_cases}")
    language = info.get("language", "python")
    if language != "python":
        raise Unwanted(f"a problem for {language}")
    prompt = _text(row, "prompt")
    tests, fn_name = _tests(info.get("test_cases"), "verification_info.test_cases")
    solution = row.get("gold_standard_solution")
    code = last_fenced_block(solution) if isinstance(solution, str) else None
    return Record(
        source="primeintellect",
        prompt=prompt,
        statement=bare(prompt),
        tests=tests,
        **_function(fn_name, "verification_info.test_cases"),
        solutions=() if code is None else (code,),
        metadata=_noted(row),
    )


def livecodebench(row: Fields, name: str) -> Record:
    """LiveCodeBench: public tests as JSON, hidden ones as JSON or packed; the function's name below metadata."""
    question, starter = _text(row, "question_content"), str(row.get("starter_code") or "")
    cases = [*_cases(row, "public_test_cases"), *_cases(row, "private_test_cases")]
    metadata = row.get("metadata")
    metadata = json_value(metadata, "metadata") if isinstance(metadata, str) else metadata
    function = metadata.get("func_name") if isinstance(metadata, Mapping) else None
    tests, fn_name = _tests(
        [{**case, "metadata": {"func_name": function}} for case in cases], "public_test_cases, private_test_cases"
    )
    return Record(
        source="livecodebench",
        prompt=livecodebench_prompt(question, starter),
        statement=question,
        tests=tests,
        **_function(fn_name, "metadata.func_name"),
        solutions_expected=False,
        date=_date(row.get("contest_date")),
        metadata=_noted(row),
    )


def released(row: Fields, name: str) -> Record:
    """The released DeepCoder set: one configuration for each source, named by the input (taco, primeintellect, lcbv5,
    codeforces)."""
    problem = _text(row, "problem")
    value = row["tests"]
    tests, fn_name = _tests(json_value(value, "tests") if isinstance(value, str) else value, "tests")
    is_livecodebench = name in ("lcbv5", "livecodebench")
    starter = str(row.get("starter_code") or "")
    return Record(
        source="livecodebench" if is_livecodebench else name,
        prompt=livecodebench_prompt(problem, starter) if is_livecodebench else problem,
        statement=bare(problem),
        tests=tests,
        **_function(fn_name, "tests"),
        solutions=_solutions(row.get("solutions")),
        solutions_expected="solutions" in row,
        metadata=_noted(row),
    )


def mathematics(row: Fields, name: str) -> Record:
    """A question with a final answer, as in DeepScaleR and AIME."""
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


_LAYOUTS: tuple[tuple[str, frozenset[str], Reader], ...] = (
    ("published", frozenset({"reward_model", "prompt"}), own),
    ("livecodebench", frozenset({"question_content", "public_test_cases"}), livecodebench),
    ("synthetic-1", frozenset({"prompt", "verification_info"}), synthetic),
    ("taco", frozenset({"question", "input_output"}), taco),
    ("own", frozenset({"id", "prompt", "tests"}), own),
    ("released", frozenset({"problem", "tests"}), released),
    ("mathematics", frozenset({"problem", "answer"}), mathematics),
)


def _text(row: Fields, field: str) -> str:
    """A field's text; empty is allowed, since a filter of its own counts that."""
    value = row.get(field, "")
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


def _function(fn_name: str | None, field: str) -> dict[str, Any]:
    if fn_name is None:
        return {}
    if not _FN_NAME.match(fn_name):
        raise RowError(f"{field}: {fn_name[:60]!r} is no function's name: give one name, or Class.method")
    return {"kind": Kind.FUNCTION, "fn_name": fn_name}


def _cases(row: Fields, field: str) -> list[Fields]:
    """LiveCodeBench's test cases: JSON text, or packed."""
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
    """Programs: a list, JSON text of one, or one program; fenced ones are taken out of their fence."""
    if isinstance(value, str):
        try:
            decoded = json.loads(value)
        except (ValueError, RecursionError):
            decoded = value
        value = decoded if isinstance(decoded, list) else [value]
    if not isinstance(value, list):
        return ()
    programs = (v for v in value if isinstance(v, str) and v.strip())
    return tuple(dict.fromkeys(last_fenced_block(p) or p for p in programs))


def _literal(text: str, field: str) -> Any:
    """JSON text, or the text that Python prints for such a value."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if len(text) > _LONGEST_LITERAL:
            raise RowError(f"{field}: not JSON ({error}): give it as a JSON string") from None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise RowError(f"{field}: neither JSON nor a Python literal ({type(error).__name__}): mend it") from None


_LONGEST_LITERAL = 4 << 20
"""Python's parser takes a hundred times a text's size."""


def _date(value: Any) -> datetime.date | None:
    if isinstance(value, datetime.datetime):
        return value.date()
    if isinstance(value, datetime.date) or value is None:
        return value
    try:
        return datetime.datetime.fromisoformat(str(value)).date()
    except ValueError:
        raise RowError(f"contest_date: {str(value)[:40]!r} is no date: write YYYY-MM-DD") from None


def _noted(row: Fields) -> dict[str, Any]:
    return {key: row[key] for key in _NOTED if isinstance(row.get(key), str | int) and row[key] != ""}


def _without_solutions(source: str) -> bool:
    return source in ("livecodebench", "lcbv5", "codeforces")
