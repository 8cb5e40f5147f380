"""What LiveCodeBench's harness answered to functions f (commit 28fef95, timeout 1 s), quirk by quirk."""

from __future__ import annotations

import livecodebench_value_rows

Row = tuple[str, list[tuple[str, str]], list[bool | int], int | None]
"""Program, tests, results and error code."""

LONG = {
    "<imports>\n": "from collections import *\nfrom types import MappingProxyType\nfrom enum import Enum, IntEnum\n",
    "<400 terms>": " + ".join(["1"] * 400),
    "<150 terms>": " + ".join(["1"] * 150),
    "<400 ones>": "+".join(["1"] * 400),
    "<45000 fs>": "f" * 45000,
    "<100 minus signs>": "-" * 100,
    "<80 opening>": "(" * 80,
    "<80 closing>": ")" * 80,
    "<50001 ones>": "1" * 50001,
    "<50000 ones>": "1" * 50000,
    "<400 zeros>": "0" * 400,
}
"""Texts too long to be written out in a row."""

ROWS: dict[str, list[Row]] = {
    "the first failure ends a submission": [
        ("class Solution:\n    def f(self,a,b):\n        return a+b", [("1\n2", "3")], [True], None),
        ("class Solution:\n    def f(self,a,b):\n        return a-b", [("1\n2", "3")], [False], -2),
    ],
    "a process that ends is [-2] with code -5, whatever passed before": [
        ("class Solution:\n    def f(self,a,b):\n        raise SystemExit", [("1\n2", "3")], [-2], -5),
        ("class Solution:\n    def f(self,a,b):\n        exit()", [("1\n2", "3")], [-2], -5),
        ("class Solution:\n    def f(self,a,b):\n        import os; os._exit(0)", [("1\n2", "3")], [-2], -5),
        ("class E(Exception):\n  def __str__(self): raise ValueError\nraise E", [("1\n2", "3")], [-2], -5),
        ("exit()", [("1\n2", "3")], [-2], -5),
        ("import os\nos._exit(0)", [("1\n2", "3")], [-2], -5),
        ("class Solution:\n    def __init__(self): exit()\n    def f(self,a,b): return 3", [("1\n2", "3")], [-2], -5),
    ],
    "all tests run in one process, with one module and one Solution": [
        (
            "class Solution:\n    n=0\n    def f(self,a,b):\n        self.n+=1\n        return self.n",
            [("1\n2", "1"), ("1\n2", "2"), ("1\n2", "4")],
            [True, True, False],
            -2,
        ),
        (
            ("import sys\nclass Solution:\n    def f(self,a,b):\n        sys.stderr = None\n        return 3"),
            [("1\n2", "3"), ("1\n2", "3")],
            [-4],
            -4,
        ),
        (
            "class Solution:\n    def f(self,a,b):\n        a.append(b)\n        return a",
            [("[]\n1", "[1]"), ("[]\n2", "[2]")],
            [True, True],
            None,
        ),
    ],
    "the alarm is an Exception that a program may swallow, and its name in an exception's repr gives -3": [
        ("class Solution:\n    def f(self,a,b):\n        while 1: pass", [("1\n2", "3")], [-3], -3),
        (
            "class Solution:\n    def f(self,a,b):\n        raise Exception('timeoutexception')",
            [("1\n2", "3")],
            [-3],
            -3,
        ),
        (
            (
                "class Solution:\n    def f(self,a,b):\n"
                "        raise type('E', (Exception,), {'__repr__': lambda s: 1 / 0})"
            ),
            [("1\n2", "3")],
            [-4],
            -4,
        ),
    ],
    "time spent in the module, outside of a test, is -4": [
        ("while 1: pass\nclass Solution:\n    def f(self,a,b):\n        return 1", [("1\n2", "3")], [-4], -4),
        (
            "import time\ntime.sleep(3)\nclass Solution:\n    def f(self,a,b):\n        return a+b",
            [("1\n2", "3")],
            [-4],
            -4,
        ),
    ],
    "arguments are one JSON value a line, read before the first test": [
        ("class Solution:\n    def f(self,a,b):\n        return a+b", [("1\n2\n", "3")], [-4], -4),
        ("class Solution:\n    def f(self,a): return 3", [("1\n2", "3")], [-4], -4),
        ("class Solution:\n    def f(self,a,b):\n        return a+b", [("1\n2", "3"), ("1\n2", "x")], [-4], -4),
        ("class Solution:\n    def f(self,a,b):\n        return a", [("1e400\n2", "Infinity")], [True], None),
        ("class Solution:\n    def f(self,a,b):\n        return a", [(" 1\n2 ", "1")], [True], None),
        ("class Solution:\n    def f(self,a,b):\n        return a", [("1\r\n2", "1")], [True], None),
        ("class Solution:\n    def f(self,a,b):\n        return a", [("", "1")], [-4], -4),
        ("class Solution:\n    def f(self,a,b):\n        return a", [("1", "1")], [-4], -4),
        ("class Solution:\n    def f(self,a,b):\n        return a", [("1\n2\n3", "1")], [-4], -4),
        ("class Solution:\n    def f(self,a,b):\n        return 3", [("1\n2", "3"), ("x\n2", "3")], [-4], -4),
        ("class Solution:\n    def f(self,a,b):\n        1/0", [("1\n2", "3"), ("1\n2", "x")], [-4], -4),
        ("def f(a,b=2): return a+b", [("1", "3")], [True], None),
        ("class Solution:\n    def f(self,a,b):\n        return a", [("\ufeff1\n2", "1")], [-4], -4),
        ("class Solution:\n    def f(self,a,b):\n        return a", [("<50001 ones>\n2", "1")], [-4], -4),
        (
            "class Solution:\n    def f(self,a,b):\n        return len(str(a))",
            [("<50000 ones>\n2", "50000")],
            [True],
            None,
        ),
    ],
    "the function is an attribute of a Solution where the text has such a class, else of the module": [
        ("def f(a,b): return a+b", [("1\n2", "3")], [True], None),
        ("# class Solution\ndef f(a,b): return a+b", [("1\n2", "3")], [-4], -4),
        ("def g(a,b): return a+b", [("1\n2", "3")], [-4], -4),
        ("1/0", [("1\n2", "3")], [-4], -4),
        ("x=(", [("1\n2", "3")], [-4], -4),
        (
            ("from __future__ import annotations\nclass Solution:\n    def f(self,a,b):\n        return a+b"),
            [("1\n2", "3")],
            [-4],
            -4,
        ),
        ("class Solution:\n    def f(self,a:List[int],b:Optional[int]): return a+b", [("1\n2", "3")], [True], None),
        ("class Solution:\n    def __init__(self): 1/0\n    def f(self,a,b): return 3", [("1\n2", "3")], [-4], -4),
        ("class Solution:\n    f=None", [("1\n2", "3")], [-4], -4),
        ("def f(self): return 1", [("1\n2", "3")], [-4], -4),
        ("f=3", [("1\n2", "3")], [-4], -4),
        ("class Solution:\n    @staticmethod\n    def f(a,b): return a+b", [("1\n2", "3")], [True], None),
        ("'class Solution'\ndef f(a,b): return a+b", [("1\n2", "3")], [-4], -4),
        ("class Solution:\n    @property\n    def f(self): return lambda a,b: a+b", [("1\n2", "3")], [True], None),
        ("class Solution:\n    @classmethod\n    def f(cls,a,b): return a+b", [("1\n2", "3")], [True], None),
        ("class  Solution:\n    def f(self,a,b): return a+b", [("1\n2", "3")], [-4], -4),
        ("def f(a,b): return a+b\nSolution = f", [("1\n2", "3")], [True], None),
        ("class Solution:\n    def __getattr__(self,name): return lambda a,b: a+b", [("1\n2", "3")], [True], None),
        ("if __name__ == '__main__':\n    1/0\ndef f(a,b): return a+b", [("1\n2", "3")], [True], None),
        ("global x\nx = 1\ndef f(a,b): return x+b", [("1\n2", "3")], [True], None),
        ("class Solution:\n    async def f(self,a,b): return 3", [("1\n2", "3")], [False], -2),
        ("class Solution:\n    def f(self,a,b): yield 3", [("1\n2", "3")], [False], -2),
        (
            "import functools\nclass Solution:\n    @functools.cache\n    def f(self,a,b): return a+b",
            [("1\n2", "3")],
            [True],
            None,
        ),
        ("x = <400 ones>\ndef f(a,b): return a+b", [("1\n2", "3")], [True], None),
        (
            (
                "from dataclasses import dataclass\n@dataclass\nclass Solution:\n    x: int = 1\n"
                "    def f(self,a,b): return self.x+b"
            ),
            [("1\n2", "3")],
            [True],
            None,
        ),
        (
            ("import sys\nclass Solution:\n    def f(self,a,b):\n        return sys._getframe().f_lineno"),
            [("1\n2", "41")],
            [True],
            None,
        ),
    ],
    **livecodebench_value_rows.ROWS,
    "a wrong value is False, and one that cannot be printed is -4 besides": [
        ("class Solution:\n    def f(self,a,b):\n        return 10**50001", [("1\n2", "3")], [False, -4], -4),
        ("class Solution:\n    def f(self,a,b):\n        return [10**50001]", [("1\n2", "3")], [False, -4], -4),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return {'a': 10**50001}",
            [("1\n2", "3")],
            [False, -4],
            -4,
        ),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return (10**50001,)",
            [("1\n2", "3")],
            [False, -4],
            -4,
        ),
        (
            "<imports>\nclass Solution:\n    def f(self,a,b):\n        return [[1], 10**50000]",
            [("1\n2", "3")],
            [False, -4],
            -4,
        ),
        ("<imports>\nclass Solution:\n    def f(self,a,b):\n        return 10**49999", [("1\n2", "3")], [False], -2),
        ("<imports>\nclass Solution:\n    def f(self,a,b):\n        return 'x' * 1000", [("1\n2", '"y"')], [False], -2),
        (
            ("class Solution:\n    def f(self,a,b):\n        x = []\n        x.append(x)\n        return x"),
            [("1\n2", "[]")],
            [False],
            -2,
        ),
    ],
    "what a function prints is forgotten, and there is nothing to read": [
        ("class Solution:\n    def f(self,a,b):\n        1/0", [("1\n2", "3")], [-4], -4),
        ("class Solution:\n    def f(self,a,b):\n        print(3)\n        return a+b", [("1\n2", "3")], [True], None),
        ("class Solution:\n    def f(self,a,b):\n        return stdin.read()", [("1\n2", '""')], [True], None),
        ("class Solution:\n    def f(self,a,b):\n        return sys.stdin.read()", [("1\n2", '""')], [True], None),
        ("class Solution:\n    def f(self,a,b):\n        return input()", [("1\n2", "3")], [-4], -4),
        (
            ("class Solution:\n    def f(self,a,b):\n        import sys; sys.stdout.write('x'); return 3"),
            [("1\n2", "3")],
            [True],
            None,
        ),
        (
            ("class Solution:\n    def f(self,a,b):\n        import sys; sys.stdout = None; print(4); return 3"),
            [("1\n2", "3")],
            [True],
            None,
        ),
        ("class Solution:\n    def f(self,a,b):\n        return open(0).read()", [("1\n2", '""')], [True], None),
    ],
}
