"""One row of a dataset as a Problem: our own layout, and the schema of the released DeepCoder data.

Our layout is one object with the fields of `ProblemRow`. The released schema is the Parquet row that the published
training scripts read: `data_source`, `prompt` (chat messages), `reward_model.ground_truth` (tests as a JSON string, in
a layout of each source) and `extra_info`. Its tests become test cases here, once, so no other code knows that sources
differ. Errors name the field and the fix; the caller adds file and line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from deepcoder_contracts.judge import MAX_TESTS, FunctionName, Kind, Scoring, TestCase
from deepcoder_contracts.judgeable import misfit, no_text, too_large
from deepcoder_trainer.problems.json_text import TooManyValues, text_of, value_of
from deepcoder_trainer.problems.tests import policy_for, select_tests
from deepcoder_trainer.types import Problem

LONGEST_ANSWER = 500
"""Largest number of characters of a final answer."""
_TRUTH = "reward_model.ground_truth"


class RowError(ValueError):
    """A row that cannot be used. The message names the field and the fix."""


class ProblemRow(BaseModel):
    """Our layout: one line of JSON Lines, or one row of Parquet."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    """Id of the problem, unique in the dataset."""

    source: Annotated[str, StringConstraints(min_length=1, max_length=100)] = "jsonl"
    """Source of the problem. It determines tests, time limit and scoring if the row does not."""

    prompt: Annotated[str, StringConstraints(min_length=1)]
    """The statement, including everything that the model should be told."""

    tests: Annotated[list[TestCase], Field(min_length=1)] | None = None
    """Tests of the problem: inputs and expected outputs."""

    answer: Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_ANSWER)] | None = None
    """Mathematics: the final answer as LaTeX, instead of tests."""

    kind: Kind = Kind.STDIN
    """How a program runs: stdin, function or script."""

    fn_name: FunctionName | None = None
    """function: name of the function to call."""

    time_limit_s: float | None = Field(default=None, gt=0, le=600)
    """CPU time limit per test, in seconds. Default: the source's."""

    memory_limit_mb: int = Field(default=1024, ge=16, le=65536)
    """Memory limit per test, in MiB."""

    scoring: Scoring | None = None
    """How outputs are compared. Default: the source's."""

    float_tolerance: float | None = Field(default=None, gt=0, le=1)
    """strict: relative and absolute tolerance for numbers in an output. Default: none."""

    solution: str | None = None
    """A correct program, for verification. It is never shown to the model."""

    metadata: dict[str, Any] = {}
    """Difficulty, date and similar data. Training does not read it."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.tests is None) == (self.answer is None):
            raise ValueError("give exactly one of tests and answer")
        if (self.kind is Kind.FUNCTION) != (self.fn_name is not None):
            raise ValueError("fn_name is needed for kind function, and not allowed for other kinds")
        scoring = self.scoring or policy_for(self.source).scoring
        wrong = misfit(self.kind, scoring, self.float_tolerance, self.tests or ())
        if wrong is not None:
            whose = "" if self.scoring else f" (source {self.source} has scoring {scoring})"
            raise ValueError(f"{wrong.field}: {wrong.why}{whose}")
        return self


def parsed_row(row: Mapping[str, Any]) -> ProblemRow:
    """Read a row in either layout, as it is written. Raises RowError."""
    if "reward_model" in row:
        row = _from_released(row)
    elif "prompt" not in row:
        raise RowError(
            "prompt: missing: give id, prompt and tests (our layout), or data_source, prompt and reward_model "
            "(the released layout)"
        )
    try:
        return ProblemRow.model_validate(row)
    except ValidationError as error:
        faults = error.errors()
        # A misspelt field also makes another one missing. The unknown name is the more helpful fault.
        first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
        message, fix = first["msg"].removeprefix("Value error, "), "fix this field"
        if not first["loc"]:  # a fault of several fields, whose message names them and the fix
            raise RowError(message) from None
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            message = "there is no such field"
            fix = f"check its spelling, or {'remove it' if len(first['loc']) > 1 else 'move it below metadata'}"
        plain = first["type"] != "missing" and not isinstance(first["input"], dict | list | BaseModel)
        shown = f" is {first['input']!r:.80}" if plain else ""
        raise RowError(f"{field}{shown}: {message}: {fix}") from None


def problem_from_row(row: Mapping[str, Any]) -> Problem:
    """Return the problem of a row in either layout, with the tests and limits of its source. Raises RowError."""
    parsed = parsed_row(row)
    policy = policy_for(parsed.source)
    tests = select_tests(parsed.source, parsed.tests or [])
    if len(tests) > MAX_TESTS:
        raise RowError(f"tests: {len(tests)}, more than the {MAX_TESTS} that are judged: leave some out")
    if (wrong := too_large(tests)) is not None:
        raise RowError(f"{wrong.field}: {wrong.why}")
    return Problem(
        id=parsed.id,
        source=parsed.source,
        prompt=parsed.prompt,
        tests=tests,
        kind=parsed.kind,
        fn_name=parsed.fn_name,
        time_limit_s=parsed.time_limit_s if parsed.time_limit_s is not None else policy.time_limit_s,
        memory_limit_mb=parsed.memory_limit_mb,
        scoring=parsed.scoring if parsed.scoring is not None else policy.scoring,
        answer=parsed.answer,
        float_tolerance=parsed.float_tolerance,
    )


def check_judgeable(problem: Problem) -> None:
    """Raise RowError for a problem with which no program can be judged or whose prompt is not valid text.

    Rows of our own layout were validated when they were read; other layouts were not.
    """
    wrong = no_text("prompt", problem.prompt)
    if wrong is None and problem.answer is None:
        wrong = misfit(problem.kind, problem.scoring, problem.float_tolerance, problem.tests)
        wrong = wrong or too_large(problem.tests)
    if wrong is not None:
        raise RowError(f"{wrong.field}: {wrong.why}")


def _from_released(row: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a row of the released schema to our layout."""
    source = row.get("data_source")
    mathematics = row.get("ability") == "math"
    if mathematics and source == "":  # as in DeepScaleR
        source = "math"
    if not isinstance(source, str) or not source:
        raise RowError("data_source: missing: name the source, as in taco, primeintellect, livecodebench, codeforces")
    prompt = prompt_text(row.get("prompt"))
    reward = row["reward_model"]
    truth = reward.get("ground_truth") if isinstance(reward, Mapping) else None
    if not isinstance(truth, str):
        raise RowError("reward_model.ground_truth: missing: give the tests as a JSON string")
    extra = row.get("extra_info")
    extra = extra if isinstance(extra, Mapping) else {}
    if extra.get("index") is not None:
        name = f"{source}-{extra.get('split') or 'train'}-{extra['index']}"
    else:
        name = f"{source}-{hashlib.sha256(prompt.encode()).hexdigest()[:16]}"
    if mathematics:
        return {"id": name, "source": source, "prompt": prompt, "answer": truth}
    tests, fn_name = released_tests(json_value(truth, _TRUTH), _TRUTH)
    return {
        "id": name,
        "source": source,
        "prompt": prompt,
        "tests": tests,
        "kind": Kind.FUNCTION if fn_name else Kind.STDIN,
        "fn_name": fn_name,
    }


def json_value(text: str, field: str) -> Any:
    """Parse the JSON text of a field. Raises RowError."""
    try:
        return value_of(text)
    except TooManyValues as error:
        raise RowError(f"{field}: {error}") from None
    except (ValueError, RecursionError) as error:  # ValueError also for an integer of more than 50,000 digits
        raise RowError(f"{field}: not JSON ({error}): give it as a JSON string") from None


def prompt_text(prompt: Any) -> str:
    """Return the only user message of a chat, or the text itself. Raises RowError."""
    if isinstance(prompt, str) and prompt:
        return prompt
    if (
        isinstance(prompt, Sequence)
        and len(prompt) == 1
        and isinstance(prompt[0], Mapping)
        and prompt[0].get("role") == "user"
        and isinstance(prompt[0].get("content"), str)
    ):
        return str(prompt[0]["content"])
    raise RowError("prompt: not one user message: give [{role: user, content: …}], as the released data has it")


def released_tests(truth: Any, field: str) -> tuple[list[dict[str, str]], str | None]:
    """Return test cases and function name from the value of `field`, in the layout of any source. Raises RowError."""
    if isinstance(truth, Mapping):  # TACO: {inputs, outputs, fn_name?}
        inputs, outputs = truth.get("inputs"), truth.get("outputs")
        if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
            raise RowError(f"{field}: inputs and outputs differ in length: give one output an input")
        cases = list(zip(inputs, outputs, strict=True))
        fn_names = {_name(truth.get("fn_name"))}
        one_argument_a_line = False
    elif isinstance(truth, list) and all(isinstance(t, Mapping) and {"input", "output"} <= t.keys() for t in truth):
        cases = [(t["input"], t["output"]) for t in truth]
        one_argument_a_line = any("testtype" in t for t in truth)  # LiveCodeBench's own form
        fn_names = {_function_of(t, field) for t in truth}
    else:
        raise RowError(f"{field}: not a list of {{input, output}} nor {{inputs, outputs}}")
    if len(fn_names) > 1:
        raise RowError(f"{field}: tests name several functions {sorted(map(str, fn_names))}: keep one")
    fn_name = next(iter(fn_names), None) or None
    try:
        if fn_name is None or one_argument_a_line:
            return [{"input": _text(i), "output": _text(o)} for i, o in cases], fn_name
        inputs, outputs = [i for i, _ in cases], [o for _, o in cases]
        arguments = _decoded(inputs)
        # If arguments are given as values and not as JSON text, a text is itself the return value.
        returned = _unwrapped(_decoded(outputs) if any(isinstance(i, str) for i in inputs) else outputs)
        return [
            {
                "input": "\n".join(text_of(a) for a in (given if isinstance(given, list) else [given])),
                "output": text_of(r),
            }
            for given, r in zip(arguments, returned, strict=True)
        ], fn_name
    except RecursionError:
        raise RowError(f"{field}: nested too deep: flatten it, or leave the test out") from None
    except TypeError as error:  # Python literals and Parquet have values that JSON does not have: sets, bytes
        raise RowError(f"{field}: {error}: give texts, numbers, lists and objects") from None


def _function_of(test: Mapping[str, Any], field: str) -> str | None:
    if test.get("testtype") == "stdin":
        return None
    metadata = test.get("metadata")
    if isinstance(metadata, Mapping) and metadata.get("func_name"):
        return str(metadata["func_name"])
    name = _name(test.get("fn_name"))
    if test.get("testtype") == "functional" and not name:
        raise RowError(f"{field}: a functional test without metadata.func_name: name the function")
    return name


def _name(value: Any) -> str | None:
    return str(value) if value else None


def _text(value: Any) -> str:
    """Return a program's input or output as text. Some sources give a list of lines, or null for nothing."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(_text(v) for v in value)
    if isinstance(value, bytes | set):
        raise TypeError(f"a {type(value).__name__} is no text")
    return text_of(value) if type(value) is int else str(value)


def _decoded(values: list[Any]) -> list[Any]:
    """Decode the values of a function's tests, which some sources give as JSON text. A problem's values are all JSON
    text or none: if one text is not JSON, then others that look like numbers are texts, too."""
    try:
        return [value_of(v) if isinstance(v, str) else v for v in values]
    except (ValueError, RecursionError):
        return values


def _unwrapped(values: list[Any]) -> list[Any]:
    """Return the expected return values, which some sources wrap in a list of one; the released check accepts both.

    If every value of a problem's tests is a list of one, the values are wrapped. Otherwise the function itself returns
    lists, some of which have one element, and the values stay unchanged.
    """
    wrapped = all(isinstance(v, list) and len(v) == 1 for v in values)
    return [v[0] for v in values] if wrapped else values
