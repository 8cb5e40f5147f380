"""A program wrapped as text is the program that LiveCodeBench's harness makes of it by parsing and unparsing.

The harness's way (`_wrap_tree`) is the standard; rewriting text (`_wrap_text`) has to give the same code wherever it
dares. Asked of the standard library's own code, cut into programs, of its fragments, and of drawn programs.
"""

from __future__ import annotations

import ast
import random
import re
import textwrap
import warnings
from pathlib import Path
from types import CodeType

import livecodebench_programs
import pytest
from fuzz_settings import LONG, SHORT
from hypothesis import given
from hypothesis import strategies as st

from deepcoder_sandbox.worker import lcb_source

LIBRARY = sorted(Path(ast.__file__).parent.glob("*.py"))
PLAIN = """\
import sys
from math import gcd  # of two
'''not plain'''
def main(n, *rest):
    # a comment with 'one quote
    for i in range(n):
        if i % 2 == 0: print(i, "x # y", sep='')
        elif i > 3:
            return gcd(n, i), {i: [n]}
    else:
        n += 1
    while True:
        try:
            pass
        finally:
            break

if __name__ == "__main__":
    main(int(input()))
"""
LINES = [
    *PLAIN.splitlines(),
    "",
    "  ",
    "\t",
    "x = 'a' 'b'",
    "x = (1,",
    "2)",
    "else:",
    "x = 1; y = 2",
    "if x: pass",
    "#",
    "'",
]


@pytest.fixture(autouse=True)
def no_warnings():
    """Fragments of programs hold escapes that Python warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def code_of(text):
    """The wrapped function's code, None where there is none."""
    if text is None:
        return None
    try:
        module = compile("pass\n" + text, "<string>", "exec", dont_inherit=True)
    except SyntaxError:
        return None
    return [one for one in module.co_consts if isinstance(one, CodeType) and one.co_name == lcb_source.FUNCTION][-1]


def same_code(one, other):
    """Whether two code objects do the same; line numbers left out."""
    if not isinstance(one, CodeType) or not isinstance(other, CodeType):
        return sorted(repr(one)) == sorted(repr(other))  # sets of constants have no order
    names = ("co_code", "co_exceptiontable", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_flags")
    return all(getattr(one, name) == getattr(other, name) for name in names) and (
        len(one.co_consts) == len(other.co_consts) and all(map(same_code, one.co_consts, other.co_consts))
    )


def body_of(text):
    """The wrapped program's tree, but for what stands in for hoisted imports and for the guard."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return None
    function = tree.body[-1]
    assert isinstance(function, ast.FunctionDef)
    last = function.body[-1]
    if isinstance(last, ast.If) and isinstance(last.test, ast.Constant) and last.test.value == 1:
        function.body[-1:] = last.body
    function.body = [statement for statement in function.body if not isinstance(statement, ast.Pass)]
    return ast.dump(tree)


def is_plain(source):
    """Check a program; return whether it was rewritten as text."""
    text = lcb_source._wrap_text(source)
    if text is None:
        return False
    tree = lcb_source._wrap_tree(source)
    if not re.search(r"^(import|from)\b|__name__", source, re.MULTILINE):
        one, other = code_of(text), code_of(tree)
        assert (one is None) is (other is None), source
        assert one is None or same_code(one, other), source
    assert body_of(text) == (tree and body_of(tree)), source
    assert ("class Solution" in text) is ("class Solution" in (tree or "")), source
    return True


def programs_of(path, chance):
    """Top-level statements, methods, and runs of lines, which are often broken."""
    source = path.read_text("utf-8", "replace")
    lines = source.split("\n")
    for statement in ast.parse(source).body:
        yield "\n".join(lines[statement.lineno - 1 : statement.end_lineno])
        for method in getattr(statement, "body", []):
            if isinstance(statement, ast.ClassDef):
                yield textwrap.dedent("\n".join(lines[method.lineno - 1 : method.end_lineno]))
    for _ in range(10):
        start = chance.randrange(len(lines))
        yield "\n".join(lines[start : start + chance.randrange(1, 30)])


def check_library(paths):
    chance = random.Random(1)
    plain = sum(is_plain(program) for path in paths for program in programs_of(path, chance))
    assert plain > 10 * len(paths)


def test_library_code_is_wrapped_alike():
    check_library(LIBRARY[::12])


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_all_library_code_is_wrapped_alike():
    check_library(LIBRARY)


@SHORT
@given(st.lists(st.sampled_from(LINES), max_size=12).map("\n".join))
def test_drawn_lines_are_wrapped_alike(source):
    is_plain(source)


@pytest.mark.long
@pytest.mark.timeout(1800)
@LONG
@given(st.lists(st.sampled_from(LINES), max_size=20).map("\n".join) | st.text("if x:\n'\"#\\()= \t;p", max_size=30))
def test_many_drawn_lines_are_wrapped_alike(source):
    is_plain(source)


def test_drawn_programs_are_wrapped_alike():
    for number in range(300):
        is_plain(livecodebench_programs.stdin_program(random.Random(number))[0])


@pytest.mark.parametrize(
    "source",
    [
        PLAIN.replace("'''not plain'''\n", ""),
        "n = int(input())\nprint(n)",
        "import sys\n  print(3)\nx = 1\n",
        "import sys\ndef f(s):\n    return '#' in s and \"it's\" or s[1:]\nprint(f('\\n'))  # done",
        "if __name__ == '__main__':\n    print(1)\n\n# the end\n",
        'def f(x):\n    """Of x."""\n    return f"{x!r:>5} of {x + 1:.2f}, {x=}"\nprint(f(1))',
        "x = F'a' + f\"{1}\" + f''\nprint(x)",
        "'''it\"s'''\nprint(1)",
        "x = (1,\n2)\n",
        "x = [\n    int(word)  # it's (one\n    for word in input().split()\n    if word\n\n]\nprint(*x)\n",
        "def f(\n    a,\n    b=')',\n) -> int:\n    if (\n        a\n and b\n    ):\n        return {\na: [b,\nb]}\n",
        "if __name__ == '__main__':\n    print(\n1\n)\n",
    ],
)
def test_plain_program_is_wrapped_without_parsing(source):
    assert is_plain(source)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "import sys",
        "  print(3)",
        "\tprint(3)",
        "print(3)\r\nprint(4)",
        "# c\rprint(3)",
        "print(3); import x",
        "import a; print(3)",
        "from a import (\n    b,\n)\nprint(3)",
        "x = 'a' 'b'\n",
        "x = '\\x41'\n",
        "x = f\"{d['a']}\"\n",
        "x = f'{1:{2}}'\n",
        "x = f'{{1}}'\n",
        "x = f'{1}' 'a'\n",
        "x = rf'{1}'\n",
        "x = '''a\n  b'''\n",
        "x = 'a\\\nb'\n",
        "x = (1,\n2\n",
        "x = ('a'\n'b')\n",
        "x = ('a'  # it's\n\n  # not\n'b')\n",
        "x = (1, '''(\n''')\n",
        "x = (a\nif __name__ else b)\n",
        "x = [" + "1,\n" * 100 + "]\n",
        "x = é\n",
        "class Solution: pass\nprint(3)",
        "x = (yield)\n",
        "match 1:\n    case 1: pass\n",
        "try:\n    while 1: pass\nexcept: print(3)",
        "print(1 " + "+ 1 " * 40 + ")",
        "x = 1\n" * 4000,
        "if (__name__) == '__main__':\n    print(3)",
        "if __name__ == '__main__':\n    print(3)\nelse:\n    print(4)",
        "if __name__ == '__main__':\n    import sys\n    print(3)",
        "if __name__ == '__main__':\n    print(3)\nif __name__ == 'x':\n    print(4)",
        "import traceback\nprint(3)",
        "import sys\nprint(f'{sys._getframe().f_lineno}')",
        "x = f'{" + "-" * 41 + "1}'\n",
    ],
)
def test_program_that_is_not_plain_goes_the_long_way(source):
    assert lcb_source._wrap_text(source) is None


def test_alarm_is_caught_on_the_line_of_a_loop_as_where_the_harness_has_broken_the_line():
    source = "try:\n    while 1: pass\nexcept: print(3)"
    assert not same_code(
        code_of("def wrapped_function():\n " + source.replace("\n", "\n ")), code_of(lcb_source.wrap(source))
    )
