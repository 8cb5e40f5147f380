"""The released DeepCoder data as it lies on the hub: a folder a configuration, files a split, small rows of ours.

Rows have the columns `problem` and `tests`, beside them what that configuration has; none says where it is from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from curation_world import ADD, ADD_INPUTS, ADD_OUTPUTS, ADDS, codeforces_row

NUMBERS = [f"{n}\n" for n in range(20)]
STARTER = "class Solution:\n    def repeat(self, s: str, n: int) -> str:\n        "


def taco_rows() -> list[dict[str, Any]]:
    """One with as many tests as it has, one of a function with more than are graded."""
    function = {"fn_name": "double", "inputs": [[n] for n in range(20)], "outputs": [[2 * n] for n in range(20)]}
    return [
        {
            "problem": ADD,
            "solutions": [f"```python\n{ADDS}\n```"],
            "tests": json.dumps({"inputs": ADD_INPUTS, "outputs": ADD_OUTPUTS}),
        },
        {
            "problem": "Write a function named double that returns twice the number it is given.",
            "solutions": ["def double(n):\n    return 2 * n\n"],
            "tests": json.dumps(function),
        },
    ]


def primeintellect_rows() -> list[dict[str, Any]]:
    """With the instructions that SYNTHETIC-1 has around its statements, and more tests than are graded."""
    cases = [{"type": "stdin_stdout", "input": n, "output": n, "fn_name": None} for n in NUMBERS]
    problem = "Solve the following coding problem using the programming language python:\n\nPrint the number you read."
    return [{"problem": problem, "solutions": ["```python\nprint(input())\n```"], "tests": json.dumps(cases)}]


def livecodebench_rows(what: str, *, metadata_as_text: bool) -> list[dict[str, Any]]:
    """A program and a function, whose name lies beside the tests."""
    stdin = [{"input": n, "output": n, "testtype": "stdin"} for n in NUMBERS]
    calls = [{"input": f'"a"\n{n}', "output": json.dumps("a" * n), "testtype": "functional"} for n in range(20)]
    rows = [
        {
            "problem": f"{what}: print the number you read.",
            "starter_code": "",
            "tests": json.dumps(stdin),
            "name": None,
        },
        {
            "problem": f"{what}: repeat s n times.",
            "starter_code": STARTER,
            "tests": json.dumps(calls),
            "name": "repeat",
        },
    ]
    for row in rows:
        metadata = {"func_name": row.pop("name")}
        row["metadata"] = json.dumps(metadata) if metadata_as_text else metadata
    return rows


def write_hub(folder: Path) -> Path:
    """The whole repository, in its own names of files."""
    train = livecodebench_rows("Before August", metadata_as_text=False)
    test = livecodebench_rows("After July", metadata_as_text=True)
    released = {
        "taco/train-00000-of-00002": taco_rows()[:1],
        "taco/train-00001-of-00002": taco_rows()[1:],
        "primeintellect/train-00000-of-00001": primeintellect_rows(),
        "lcbv5/train-00000-of-00001": train,
        "lcbv5/test-00000-of-00002": test[:1],
        "lcbv5/test-00001-of-00002": test[1:],
        "codeforces/test-00000-of-00001": [{k: v for k, v in codeforces_row().items() if k != "metadata"}],
    }
    for name, rows in released.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder
