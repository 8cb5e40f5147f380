"""Rows in the layouts of the published sets, written by hand: small, and of our own."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ADD = "Read two integers a and b on one line, and print what they come to when they are added together."
ADDS = "print(sum(map(int, input().split())))"
WRONG = "print(0)"
NUMBER_PAIRS = [(1, 2), (10, 20), (-5, 5), (100, 1), (7, 8), (0, 9)]
ADD_INPUTS = [f"{a} {b}\n" for a, b in NUMBER_PAIRS]
ADD_OUTPUTS = [f"{a + b}\n" for a, b in NUMBER_PAIRS]


def taco_row(**changes: Any) -> dict[str, Any]:
    return {
        "question": ADD,
        "solutions": [WRONG, ADDS],
        "starter_code": "",
        "input_output": json.dumps({"inputs": ADD_INPUTS, "outputs": ADD_OUTPUTS}),
        "difficulty": "EASY",
        "source": "codeforces",
        "url": "https://example.invalid/1/A",
        "name": None,
        "time_limit": "2.0 seconds",
        **changes,
    }


def taco_function_row(**changes: Any) -> dict[str, Any]:
    cases = {
        "fn_name": "double",
        "inputs": [[n] for n in range(6)],
        "outputs": [[2 * n] for n in range(6)],
    }
    function = {
        "question": "Write a function named double that is given a whole number and returns twice that number.",
        "input_output": json.dumps(cases),
        "solutions": json.dumps(["def double(n):\n    return 2 * n\n"]),
        "starter_code": "def double(n):\n\t",
    }
    return taco_row(**{**function, **changes})


def synthetic_row(language: str = "python", as_python: bool = False, **changes: Any) -> dict[str, Any]:
    cases = [{"type": "stdin_stdout", "input": f"{n}\n", "output": f"{n * n}\n", "fn_name": None} for n in range(1, 7)]
    info = {"language": language, "test_cases": cases}
    return {
        "source": "apps",
        "task_type": "verifiable_code",
        "in_source_id": "4711",
        "prompt": "Solve the following coding problem using the programming language python:\n\n"
        "A square garden has sides of n metres. Print its area in square metres for the n that is read.\n\n"
        "The input will be stdin and you should print your solution to stdout\n\n\n"
        "Now solve the problem and return the code.",
        "gold_standard_solution": "```python\nn = int(input())\nprint(n * n)\n```",
        "verification_info": str(info) if as_python else json.dumps(info),
        "metadata": json.dumps({"difficulty": "introductory"}),
        "problem_id": "vcp_4711",
        **changes,
    }


def packed(value: Any) -> str:
    """As LiveCodeBench packs hidden tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(value)))).decode()


def livecodebench_row(date: str = "2023-08-12T00:00:00", **changes: Any) -> dict[str, Any]:
    public = [{"input": "3\n", "output": "cba\n", "testtype": "stdin"}]
    private = [{"input": f"{n}\n", "output": "x" * n + "\n", "testtype": "stdin"} for n in range(5)]
    return {
        "question_title": "Backwards",
        "question_content": "A word of lowercase letters is given. Print that word spelt from its end to its start.",
        "platform": "atcoder",
        "question_id": "abc300_a",
        "contest_id": "abc300",
        "contest_date": date,
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(public),
        "private_test_cases": packed(private),
        "metadata": "{}",
        **changes,
    }


def livecodebench_function_row(**changes: Any) -> dict[str, Any]:
    cases = [{"input": f'"a"\n{n}', "output": json.dumps("a" * n), "testtype": "functional"} for n in range(6)]
    function = {
        "question_content": "Given a string s and a number n, return a string in which s is repeated n times in a row.",
        "starter_code": "class Solution:\n    def repeat(self, s: str, n: int) -> str:\n        ",
        "public_test_cases": json.dumps(cases[:2]),
        "private_test_cases": packed(cases[2:]),
        "metadata": json.dumps({"func_name": "repeat"}),
    }
    return livecodebench_row(**{**function, **changes})


def codeforces_row(**changes: Any) -> dict[str, Any]:
    return {
        "problem": "A robot stands at zero and hears n commands, L or R. Print where it stands when all are done.",
        "tests": json.dumps([{"input": "3\nLRR\n", "output": "1\n"}, {"input": "2\nLL\n", "output": "-2\n"}]),
        "metadata": json.dumps({"contest": 9999}),
        **changes,
    }


def official_codeforces_row(**changes: Any) -> dict[str, Any]:
    """As the set of all Codeforces problems has them."""
    return {
        "id": "1900/A",
        "contest_id": "1900",
        "contest_name": "Made up",
        "contest_start": 1_700_000_000,
        "index": "A",
        "time_limit": 2.0,
        "memory_limit": 256.0,
        "title": "Sum",
        "description": "Numbers are given.",
        "input_format": "The first line has their count n, the second the n numbers.",
        "output_format": "Print what they come to together.",
        "interaction_format": None,
        "note": None,
        "examples": [{"input": "2\n5 7\n", "output": "12\n"}],
        "rating": 800,
        "tags": ["greedy"],
        "official_tests": [{"input": "2\n5 7\n", "output": "12\n"}, {"input": "1\n3\n", "output": "3\n"}],
        "official_tests_complete": True,
        "input_mode": "stdio",
        "generated_checker": None,
        "executable": True,
        **changes,
    }


def mathematics_row(**changes: Any) -> dict[str, Any]:
    return {
        "problem": "The product of two consecutive positive whole numbers is 156. What is their sum?",
        "answer": "25",
        "solution": "12 times 13 is 156, so the sum is $\\boxed{25}$.",
        **changes,
    }


def own_row(**changes: Any) -> dict[str, Any]:
    return {
        "id": "mine-1",
        "source": "mine",
        "prompt": "Print the larger of the two whole numbers that stand on the only line of the input.",
        "tests": [{"input": f"{n} 3\n", "output": f"{max(n, 3)}\n"} for n in range(6)],
        "solution": "print(max(map(int, input().split())))",
        "metadata": {"difficulty": "easy"},
        **changes,
    }


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
