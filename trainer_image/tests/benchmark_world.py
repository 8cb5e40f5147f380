"""Small benchmarks of ours in exactly the layouts of the published ones, with right answers and stubs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curation_world import (
    codeforces_row,
    livecodebench_function_row,
    livecodebench_row,
    mathematics_row,
    own_row,
    write_jsonl,
)

HEAD = 'def halves(numbers):\n    """ Return half of each number.\n    >>> halves([1, 2])\n    [0.5, 1.0]\n    """\n'
BODY = "    return [n / 2 for n in numbers]\n"


def humaneval_row(**changes: Any) -> dict[str, Any]:
    """OpenAI's layout."""
    return {
        "task_id": "HumanEval/900",
        "prompt": HEAD,
        "entry_point": "halves",
        "canonical_solution": BODY,
        "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == [0.5, 1.0]\n"
        "    assert candidate([]) == []\n",
        **changes,
    }


def humanevalplus_row(**changes: Any) -> dict[str, Any]:
    """The layout of evalplus/humanevalplus: its checks use numpy."""
    test = (
        "import numpy as np\n\n"
        "def inexact(out, exp, atol):\n"
        "    if isinstance(exp, np.ndarray):\n        return False\n"
        "    return np.allclose(out, exp, rtol=1e-07, atol=atol)\n\n"
        "def check(candidate):\n"
        "    inputs = [[[1, 2]], [[0.2]]]\n    results = [[0.5, 1.0], [0.1]]\n"
        "    for inp, exp in zip(inputs, results):\n"
        "        out = candidate(*inp)\n        assert out == exp or inexact(out, exp, 1e-6)\n"
    )
    return humaneval_row(task_id="HumanEval/901", test=test, **changes)


def humaneval_beside_row() -> dict[str, Any]:
    """OpenAI's layout, its test calling a function that the prompt gives beside the one to write."""
    return humaneval_row(
        task_id="HumanEval/938",
        prompt=f"import math\n\n\ndef doubles(numbers):\n    return [math.prod((2, n)) for n in numbers]\n\n\n{HEAD}",
        test="def check(candidate):\n    assert candidate(doubles([1, 2])) == [1, 2]\n",
    )


def evalplus_release_row(**changes: Any) -> dict[str, Any]:
    """The layout of EvalPlus' releases."""
    row = humaneval_row(task_id="HumanEval/902")
    del row["test"]
    extra = {"contract": "", "base_input": [[[1, 2]], [[]]], "plus_input": [[[0.3, 7]]], "atol": 0}
    return {**row, **extra, **changes}


def find_zero_row() -> dict[str, Any]:
    """The one problem whose answer is not one value."""
    return evalplus_release_row(
        task_id="HumanEval/932",
        prompt="def poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n\n\ndef find_zero(xs):\n",
        entry_point="find_zero",
        canonical_solution="    return -xs[0] / xs[1]\n",
        base_input=[[[2, 1]]],
        plus_input=[[[-6, 3]]],
        atol=1e-4,
    )


SETS: Mapping[str, tuple[list[dict[str, Any]], dict[str, str]]] = {
    "livecodebench": (
        [
            livecodebench_row(
                question_id="abc1",
                public_test_cases=json.dumps([{"input": "ab\n", "output": "ba\n", "testtype": "stdin"}]),
                private_test_cases=json.dumps(
                    [{"input": f"{w}\n", "output": f"{w[::-1]}\n", "testtype": "stdin"} for w in ("xyz", "q", "")]
                ),
                contest_date="2024-08-10T00:00:00",
            ),
            livecodebench_function_row(question_id="lc2", contest_date="2024-09-01T00:00:00", difficulty="medium"),
        ],
        {
            "abc1": "print(input()[::-1])",
            "lc2": "class Solution:\n    def repeat(self, s, n):\n        return s * n",
        },
    ),
    "codeforces": (
        [codeforces_row()],
        {"codeforces-1": "n = int(input())\ns = input()\nprint(s.count('R') - s.count('L'))"},
    ),
    "humaneval": ([humaneval_row()], {"HumanEval/900": HEAD + BODY}),
    "humaneval-beside": ([humaneval_beside_row()], {"HumanEval/938": HEAD + BODY}),
    "humanevalplus": ([humanevalplus_row()], {"HumanEval/901": HEAD + BODY}),
    "evalplus": (
        [evalplus_release_row(), find_zero_row()],
        {
            "HumanEval/902": HEAD + BODY,
            "HumanEval/932": "def find_zero(xs):\n    return 0.00001 - xs[0] / xs[1]\n",
        },
    ),
    "aime": ([mathematics_row(), {"id": "II-3", "problem": "One half of one?", "answer": "\\frac{1}{2}"}], {}),
    "own": ([own_row()], {"mine-1": "print(max(map(int, input().split())))"}),
}
"""Rows of each benchmark, and a right program for each of its problems."""

ANSWERS = {"aime-1": "25", "II-3": "0.5"}
STUBS = {"livecodebench": "import sys", "codeforces": "print(0)", "own": "print('')"}
STUB = "def halves(numbers):\n    return None\n\n\ndef find_zero(xs):\n    return None\n"


def write_sets(folder: Path) -> dict[str, Path]:
    """A file for each benchmark."""
    return {name: write_jsonl(folder / f"{name}.jsonl", rows) for name, (rows, _) in SETS.items()}


def right_responses(name: str, of: str) -> list[dict[str, str]]:
    """What a model that knows everything would say to the set `of`, which has the problems of `name`."""
    if name == "aime":
        return [{"problem_id": _id(p, name, of), "response": f"So $\\boxed{{{a}}}$."} for p, a in ANSWERS.items()]
    return [{"problem_id": _id(p, name, of), "solution": code} for p, code in SETS[name][1].items()]


def stub_responses(name: str, of: str) -> list[dict[str, str]]:
    """What a model that knows nothing would say, in programs and answers that run."""
    if name == "aime":
        return [{"problem_id": _id(p, name, of), "response": "\\boxed{7}"} for p in ANSWERS]
    stub = STUBS.get(name, STUB)
    return [{"problem_id": _id(p, name, of), "solution": stub} for p in SETS[name][1]]


def _id(problem: str, name: str, of: str) -> str:
    """Problems without an id are called after their set."""
    return problem.replace(f"{name}-", f"{of}-")
