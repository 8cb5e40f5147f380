"""LiveCodeBench's way of running a program, quirks included, without what it compares.

Its harness (github.com/LiveCodeBench/LiveCodeBench, commit 28fef95, lcb_runner/evaluation/testing_util.py) turns the
program into one function that it calls once a test, in one process, on a stand-in for stdin. Every oddity below is
there on purpose; `docs/judge.md` lists them. What differs: expected outputs are elsewhere, memory is limited, and the
judge keeps the time. Compared by `deepcoder_sandbox.compare.livecodebench`, asked by `deepcoder_sandbox.lcb_session`.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

_STARRED = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json", "builtins", "typing"),
)
_RECURSION_LIMIT = 50_000
_INTEGER_DIGITS = 50_000
_GUARDED_OS = (
    *("kill", "system", "putenv", "remove", "removedirs", "rmdir", "fchdir", "setuid", "fork", "forkpty", "killpg"),
    *("rename", "renames", "truncate", "replace", "unlink", "fchmod", "fchown", "chmod", "chown", "chroot"),
    *("lchflags", "lchmod", "lchown", "getcwd", "chdir"),
)
_GUARDED_SHUTIL = ("rmtree", "move", "chown")
_GUARDED_MODULES = ("ipdb", "joblib", "resource", "psutil", "tkinter")
_FUNCTION = "wrapped_function"


class TimeoutException(Exception):  # programs and the grading know it by this name
    """What the alarm raises in the program."""


def preamble() -> dict[str, Any]:
    """Return the names that star imports put before every program; made once a zygote."""
    names: dict[str, Any] = {}
    for module in _STARRED:
        exec(f"from {module} import *", names)  # noqa: S102
    for module in _STARRED:
        if module not in ("builtins", "typing"):
            exec(f"import {module}", names)  # noqa: S102
    for own in ("__builtins__", "__annotations__"):
        names.pop(own, None)
    return names


PREAMBLE = preamble()


def guard(source: str) -> None:
    """Take away what the harness takes away. No protection, only the same failures.

    shutil is loaded for it only where the program may use it; without subprocess.Popen starting one fails anyway.
    """
    sys.set_int_max_str_digits(_INTEGER_DIGITS)
    for name in _GUARDED_OS:
        setattr(os, name, None)
    if "shutil" in source:
        shutil = importlib.import_module("shutil")
        for name in _GUARDED_SHUTIL:
            setattr(shutil, name, None)
    for name in ("quit", "help"):
        setattr(builtins, name, None)
    for name in _GUARDED_MODULES:
        vars(sys)["modules"][name] = None


class Alarm:
    """What the judge's alarm does during a step: it raises, once, and out of a step it does nothing."""

    def __init__(self) -> None:
        self._heeded = False
        signal.signal(signal.SIGALRM, self._ring)

    def set(self) -> None:
        """A step begins."""
        self._heeded = True

    def clear(self) -> None:
        """The step is over."""
        self._heeded = False

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if self._heeded:
            self._heeded = False
            print("timeout occured: alarm went off")  # noqa: T201  # may well become part of the output
            raise TimeoutException


def wrap(source: str) -> str:
    """Return the program as the harness rewrites it: imports first, the rest one function."""
    try:
        tree = ast.parse(_without_main_guard(source))
        imports = [statement for statement in tree.body if isinstance(statement, ast.Import | ast.ImportFrom)]
        others = [statement for statement in tree.body if not isinstance(statement, ast.Import | ast.ImportFrom)]
        no_arguments = ast.arguments(
            posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[], vararg=None, kwarg=None
        )
        function = ast.FunctionDef(name=_FUNCTION, args=no_arguments, body=others, decorator_list=[], lineno=-1)
        lines = [ast.unparse(statement) for statement in imports]
        return "\n".join([*lines, ast.unparse(function)])
    except Exception:
        return source


def _without_main_guard(source: str) -> str:
    """Inline a final `if __name__ == '__main__'` block; anything else is left as it is."""
    try:
        tree = ast.parse(source)
        last = tree.body[-1]
        if isinstance(last, ast.If) and ast.unparse(last.test).strip() == "__name__ == '__main__'":
            kept = ast.Module(body=tree.body[:-1], type_ignores=[])
            return ast.unparse(kept) + "\n" + "\n".join(ast.unparse(statement) for statement in last.body)
    except BaseException:  # noqa: S110  # the harness swallows all of it too
        pass
    return source


def load(source: str, alarm: Alarm, fn_name: str | None) -> Callable[..., Any]:
    """Execute the program's module and return what is called for each test.

    Raises whatever the module does; AttributeError and TypeError where there is nothing to call.
    """
    text = source if fn_name else wrap(source)
    alarm.set()
    try:
        module = ModuleType("tmp_sol", "")
        names = module.__dict__
        names.update(PREAMBLE, quit=None, help=None)
        sys.setrecursionlimit(_RECURSION_LIMIT)
        # the preamble's lines stand before the program: imports from __future__ come too late
        exec(compile("pass\n" + text, "<string>", "exec", dont_inherit=True), names)  # noqa: S102
        owner = _owner(module, text)
    finally:
        alarm.clear()
    name = fn_name or _FUNCTION
    if owner is None or not hasattr(owner, name):
        raise TypeError("cannot unpack non-iterable NoneType object")
    method: Callable[..., Any] = getattr(owner, name)
    return method


def _owner(module: ModuleType, text: str) -> Any:
    """The one Solution instance where the text has such a class, even inside the wrapped function, else the module."""
    return getattr(module, "Solution")() if "class Solution" in text else module  # noqa: B009


def arguments(text: str) -> list[Any]:
    """Return one JSON value a line; an empty last line is an error."""
    return [json.loads(line) for line in text.split("\n")]


class _Buffer:
    """stdin.buffer: read is everything, readline always the first line, and there is nothing else."""

    def __init__(self, text: str) -> None:
        self.inputs = text.encode("utf-8")

    def read(self, *_: object) -> bytes:
        return self.inputs

    def readline(self, *_: object) -> bytes:
        return self.inputs.split(b"\n")[0] + b"\n"


class _Stdin:
    """sys.stdin: readline moves on, read and readlines do not; not iterable."""

    def __init__(self, text: str) -> None:
        self.inputs = text
        self._stringio = io.StringIO(text)
        self.buffer = _Buffer(text)

    def read(self, *_: object) -> str:
        return self.inputs

    def readline(self, *limits: int) -> str:
        return self._stringio.readline(*limits)

    def readlines(self, *_: object) -> list[str]:
        return self.inputs.split("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stringio, name)


class StandInForStdio:
    """For one test: sys.stdin from a text, sys.stdout into one.

    The real stdin object, which programs hold that import it by name, gets other oddities: its readline drops the
    newline and raises StopIteration at the end.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._lines = iter(text.split("\n"))
        self._stdin, self._stdout, self._open = sys.stdin, sys.stdout, builtins.open
        self._captured = io.StringIO()

    def __enter__(self) -> io.StringIO:
        real: Any = self._stdin
        real.read = lambda *_: self._text
        real.readlines = lambda *_: self._text.split("\n")
        real.readline = lambda *_: next(self._lines)
        vars(sys)["stdin"] = _Stdin(self._text)
        vars(sys)["stdout"] = self._captured
        vars(self._captured)["close"] = lambda _: 1
        vars(builtins)["open"] = self._mocked_open
        return self._captured

    def _mocked_open(self, *given: Any, **named: Any) -> Any:
        vars(builtins)["open"] = self._open
        opener = importlib.import_module("unittest.mock").mock_open(read_data=self._text)
        vars(builtins)["open"] = opener
        return opener(*given, **named)

    def __exit__(self, *_: object) -> None:
        real: Any = self._stdin
        vars(builtins)["open"] = self._open
        vars(sys)["stdin"], vars(sys)["stdout"] = self._stdin, self._stdout
        for name in ("read", "readlines", "readline"):
            vars(real).pop(name, None)
