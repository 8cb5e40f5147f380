"""Reads HumanEval and HumanEval+ as published: a function's head to complete, and a script that checks it. Pure.

- OpenAI's HumanEval, and `evalplus/humanevalplus`: task_id, prompt, entry_point, and `test`, which defines
  check(candidate);
- EvalPlus' own releases (HumanEvalPlus-….jsonl): task_id, prompt, entry_point, canonical_solution, base_input,
  plus_input, atol. The canonical solution's return values are the expected ones.

As in the originals, both are judged as a script: the program followed by the test in the same process. The script of
the second form compares as EvalPlus does, with its tolerances. The prompt is that of the released evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from deepcoder_contracts.judge import Kind, TestCase
from deepcoder_trainer.problems.json_text import value_of
from deepcoder_trainer.problems.rows import RowError
from deepcoder_trainer.types import Problem

SECONDS = 30.0
"""CPU time limit of a problem, in seconds. All its tests are one script; HumanEval+ has hundreds per problem."""

_ASK = (
    "Write a complete, self-contained Python solution to the following problem. Your solution must include all "
    "necessary imports and the full function definition including the signature exactly as specified. Do not modify "
    "the function signature or docstring."
)


def is_humaneval(row: Mapping[str, Any]) -> bool:
    """Whether a row has one of these layouts."""
    return {"task_id", "prompt", "entry_point"} <= row.keys() and ("test" in row or "base_input" in row)


def humaneval_problem(row: Mapping[str, Any]) -> Problem:
    """Return the problem of a row. Raises RowError."""
    task, prompt, entry = (_text(row, field) for field in ("task_id", "prompt", "entry_point"))
    if not entry.isidentifier():
        raise RowError(f"entry_point: {entry[:60]!r} is not a function name: name the function")
    script = _checked_by_test(row, prompt, entry) if "test" in row else _checked_by_solution(row, prompt, entry)
    return Problem(
        id=task,
        source="humaneval",
        prompt=f"{_ASK}\n\n```python\n{prompt.strip()}\n```",
        tests=(TestCase(input=script, output=""),),
        kind=Kind.SCRIPT,
        time_limit_s=SECONDS,
    )


def _checked_by_test(row: Mapping[str, Any], prompt: str, entry: str) -> str:
    beside = f"{_BESIDE}\n_deepcoder_beside({prompt!r}, {entry!r})\n"
    return f"{NUMPY_STANDIN}\n{beside}\n{_text(row, 'test')}\n\ncheck({entry})\n"


def _checked_by_solution(row: Mapping[str, Any], prompt: str, entry: str) -> str:
    inputs = [i for field in ("base_input", "plus_input") for i in _inputs(row, field)]
    if not inputs:
        raise RowError("base_input: no input: give base_input and plus_input as lists of argument lists")
    tolerance = row.get("atol", 0)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
        raise RowError("atol: not a number: give the tolerance, 0 for none")
    try:
        text = json.dumps(inputs)
    except ValueError as error:  # neither could the judge's interpreter read it
        raise RowError(f"base_input, plus_input: {error}: leave that input out") from None
    settings = {
        "reference": prompt + _text(row, "canonical_solution"),
        "entry": entry,
        "inputs": text,
        "atol": float(tolerance),
    }
    # No solution defines a function of this name, and `exec` separates the reference's names from the solution's.
    return f"{_COMPARE}\n_deepcoder_compare({entry}, **{settings!r})\n"


def _inputs(row: Mapping[str, Any], field: str) -> list[list[Any]]:
    value = row.get(field, [])
    if isinstance(value, str):
        try:
            value = value_of(value)
        except (ValueError, RecursionError) as error:
            raise RowError(f"{field}: not JSON ({error}): give a list of argument lists") from None
    if not isinstance(value, list) or not all(isinstance(v, list) for v in value):
        raise RowError(f"{field}: not a list of argument lists: give [[first, second], …]")
    return value


def _text(row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value:
        raise RowError(f"{field}: missing: give it as a text")
    return value


_BESIDE = '''
def _deepcoder_beside(prompt, entry):
    """Some tests call what the prompt defines beside the function (the encoder of what is to be decoded). OpenAI's
    harness puts the prompt before each program; one that is whole without it may leave that out."""
    found = {"__name__": "prompt"}
    try:
        exec(prompt, found)
    except Exception:
        return
    for name, value in found.items():
        if name != entry:
            globals().setdefault(name, value)
'''

NUMPY_STANDIN = '''
def _deepcoder_numpy():
    """Judges have no numpy. EvalPlus' tests use three names of it: for arrays, which no answer is without it, and for
    closeness."""
    import sys
    try:
        import numpy
    except ImportError:
        import types
        module = types.ModuleType("numpy")
        module.ndarray = type("ndarray", (), {})
        module.float32 = module.float64 = float
        def allclose(a, b, rtol=1e-05, atol=1e-08):
            if isinstance(a, (list, tuple)) or isinstance(b, (list, tuple)):
                return len(a) == len(b) and all(allclose(x, y, rtol, atol) for x, y in zip(a, b))
            return a == b or abs(a - b) <= atol + rtol * abs(b)
        module.allclose = allclose
        sys.modules["numpy"] = module
_deepcoder_numpy()
'''

_COMPARE = """
def _deepcoder_compare(candidate, reference, entry, inputs, atol):
    import copy
    import json

    def floats(value):
        if isinstance(value, (list, tuple)):
            return bool(value) and all(isinstance(v, float) for v in value)
        return isinstance(value, float)

    def close(out, exp, atol):
        if isinstance(exp, (list, tuple)):
            return type(out) is type(exp) and len(out) == len(exp) and all(close(o, e, atol) for o, e in zip(out, exp))
        return out == exp or abs(out - exp) <= atol + 1e-07 * abs(exp)

    right = {"__name__": "reference"}
    exec(reference, right)
    for given in json.loads(inputs):
        expected = right[entry](*copy.deepcopy(given))
        out = candidate(*copy.deepcopy(given))
        if entry == "find_zero":  # any root is right
            assert abs(right["poly"](given[0], out)) <= atol, "no root"
            continue
        tolerance = 1e-06 if atol == 0 and floats(expected) else atol
        same = type(out) is type(expected) and tolerance and close(out, expected, tolerance)
        assert out == expected or same, "wrong"
"""
