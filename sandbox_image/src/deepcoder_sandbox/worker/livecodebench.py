"""Runs a program as LiveCodeBench does, including its quirks, but without its comparison.

LiveCodeBench's harness (github.com/LiveCodeBench/LiveCodeBench, commit 28fef95, lcb_runner/evaluation/testing_util.py)
turns the program into one function and calls it once per test, in one process, with a substitute for stdin. Every
oddity below is intended; `docs/judge.md` lists them. The differences: expected outputs are elsewhere, memory is
limited, and the judge measures the time. `deepcoder_sandbox.compare.livecodebench` compares the outputs, and
`deepcoder_sandbox.lcb_session` requests the runs.
"""

from __future__ import annotations

import _sitebuiltins
import builtins
import importlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any

from deepcoder_sandbox.worker import lcb_preamble, lcb_source, values

_RECURSION_LIMIT = 50_000
_INTEGER_DIGITS = 50_000
_GUARDED_OS = dict.fromkeys(
    (
        *("kill", "system", "putenv", "remove", "removedirs", "rmdir", "fchdir", "setuid", "fork", "forkpty", "killpg"),
        *("rename", "renames", "truncate", "replace", "unlink", "fchmod", "fchown", "chmod", "chown", "chroot"),
        *("lchflags", "lchmod", "lchown", "getcwd", "chdir"),
    )
)
_GUARDED_MODULES = dict.fromkeys(("ipdb", "joblib", "psutil", "tkinter"))
_GUARDED_LATE = "resource"  # not in the zygote, whose wait4 needs it
_GUARDED_BUILTINS = dict.fromkeys(("quit", "help"))
_GUARDED_WHERE_USED = {"shutil": dict.fromkeys(("rmtree", "move", "chown")), "subprocess": {"Popen": None}}
_CLOSED = io.TextIOWrapper(io.BytesIO())
_CLOSED.close()
_BEFORE_STDIN, _BEFORE_FUNCTION = "pass" + "\n" * 36, "pass" + "\n" * 37
"""Stand for the preamble's lines before the program, so that line numbers are the harness's, and imports from
__future__ come too late."""
_MAX_DETAIL = 300


class TimeoutException(Exception):  # programs and the grading know it by this name
    """What the alarm raises in the program."""


_module = ModuleType("tmp_sol", "")
"""The program's module, with the names that star imports put before every program. These are hundreds of objects, each
of which a copy would otherwise have to touch in every process."""


class _Alarm:
    """Handles the judge's alarm: it raises once during a step, and does nothing outside of one."""

    def __init__(self) -> None:
        self.heeded = False

    def ring(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        if self.heeded:
            self.heeded = False
            print("timeout occured: alarm went off")  # noqa: T201  # may well become part of the output
            raise TimeoutException


_alarm = _Alarm()


def prepare_zygote() -> None:
    """Do, once in the zygote, what the harness does before every program.

    That includes removing what the harness removes: no protection, only the same failures.
    """
    sys.set_int_max_str_digits(_INTEGER_DIGITS)
    sys.modules.update(_GUARDED_MODULES)  # type: ignore[arg-type]
    vars(os).update(_GUARDED_OS)
    vars(builtins).update(_GUARDED_BUILTINS)
    sys.argv = ["main.py"]
    vars(sys)["__stdin__"] = _CLOSED
    lcb_preamble.put_usual(vars(_module))
    vars(_module).update(_GUARDED_BUILTINS, exit=_sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)"))
    signal.signal(signal.SIGALRM, _alarm.ring)


def prepare(source: str) -> None:
    """Do what can be done before the program's text is run: nothing that this raises is the program's fault.

    Modules that the zygote has not loaded are loaded only if the program may use them.
    """
    sys.modules[_GUARDED_LATE] = None  # type: ignore[assignment]
    for name in _GUARDED_WHERE_USED:
        if name in source:
            vars(importlib.import_module(name)).update(_GUARDED_WHERE_USED[name])
    lcb_preamble.put_seldom(source, vars(_module))


def load(source: str, fn_name: str | None) -> Callable[..., Any]:
    """Execute the module of a prepared program, once per process; return what is called for each test.

    Raises whatever the module does; AttributeError and TypeError if there is nothing to call.
    """
    _alarm.heeded = True
    try:
        text = source if fn_name else lcb_source.wrap(source)
        if text is None:  # the harness then puts nothing before it either
            module, text = ModuleType("tmp_sol", ""), source
            exec(compile(text, "<string>", "exec", dont_inherit=True), module.__dict__)  # noqa: S102
        else:
            module = _module
            before = _BEFORE_FUNCTION if fn_name else _BEFORE_STDIN
            code = compile(before + text, "<string>", "exec", dont_inherit=True)
            sys.setrecursionlimit(_RECURSION_LIMIT)
            exec(code, module.__dict__)  # noqa: S102
        owner = _owner(module, text)
    finally:
        _alarm.heeded = False
    name = fn_name or lcb_source.FUNCTION
    if owner is None or not hasattr(owner, name):
        raise TypeError("cannot unpack non-iterable NoneType object")
    method: Callable[..., Any] = getattr(owner, name)
    return method


@contextmanager
def without_a_program() -> Iterator[None]:
    """Unload the program at the end."""
    names = set(vars(_module))
    yield
    for name in set(vars(_module)) - names:
        del vars(_module)[name]


def _owner(module: ModuleType, text: str) -> Any:
    """Return a Solution instance if the text has such a class, even in the wrapped function, else the module."""
    return getattr(module, "Solution")() if "class Solution" in text else module  # noqa: B009


def run_once(called: Callable[..., Any], text: str) -> bytes | dict[str, Any]:
    """Call the wrapped program on `text`; return its output, or how it failed.

    SystemExit counts as returning. Any other exception that is no Exception ends the process.
    """
    try:
        _start_fault_handler()
        failure = None
        with StandInForStdio(text) as captured:
            _alarm.heeded = True
            try:
                called()
            except SystemExit:
                pass
            except Exception as error:
                _alarm.heeded = False
                failure = _failure(error)
            finally:
                _alarm.heeded = False
        output = captured.getvalue()
    except Exception as error:
        return {"collapsed": True, **describe(error)}
    return output.encode("utf-8", "surrogatepass") if failure is None else failure


def call_once(called: Callable[..., Any], text: str) -> bytes | dict[str, Any]:
    """Call the function on the arguments in `text`; return the encoded value, or how it failed."""
    try:
        given = arguments(text)
        _start_fault_handler()
        _alarm.heeded = True
        try:
            returned = called(*given)
        except Exception as error:
            _alarm.heeded = False
            return _failure(error)
        finally:
            _alarm.heeded = False
    except Exception as error:
        return {"collapsed": True, **describe(error)}
    return values.encode(returned)


def arguments(text: str) -> list[Any]:
    """Return a JSON value per line; an empty last line is an error."""
    return [json.loads(line) for line in text.split("\n")]


def _start_fault_handler() -> None:
    """Fail as faulthandler.enable() does before each test, if a test removed the file that it writes to."""
    if sys.stderr is None:
        raise RuntimeError("sys.stderr is None")
    sys.stderr.fileno()


def _failure(error: Exception) -> dict[str, Any]:
    """Return how an exception counts. If its repr fails, that is raised, which spoils the whole result."""
    shown = repr(error)
    timed_out = "timeoutexception" in shown.lower()
    return {"timed_out": timed_out, "memory": isinstance(error, MemoryError), "detail": shown[:_MAX_DETAIL]}


def describe(error: Exception) -> dict[str, Any]:
    """Describe an exception outside a test. One that cannot be shown ends the process, as in the harness."""
    return {"detail": f"{type(error).__name__}: {error}"[:_MAX_DETAIL], "memory": isinstance(error, MemoryError)}


class MockBuffer:  # programs can see this name
    """stdin.buffer: read returns everything, readline always the first line; it has nothing else."""

    def __init__(self, text: str) -> None:
        self.inputs = text.encode("utf-8")

    def read(self, *_: object) -> bytes:
        """Return everything."""
        return self.inputs

    def readline(self, *_: object) -> bytes:
        """Return the first line."""
        return self.inputs.split(b"\n")[0] + b"\n"


class MockStdinWithBuffer:
    """sys.stdin: readline moves on, read and readlines do not; not iterable."""

    def __init__(self, text: str) -> None:
        self.inputs = text
        self._stringio = io.StringIO(text)
        self.buffer = MockBuffer(text)

    def read(self, *_: object) -> str:
        """Return everything."""
        return self.inputs

    def readline(self, *limits: int) -> str:
        """Return the next line or part."""
        return self._stringio.readline(*limits)

    def readlines(self, *_: object) -> list[str]:
        """Return lines without their ends, and an empty one after the last."""
        return self.inputs.split("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stringio, name)


class StandInForStdio:
    """Replaces sys.stdin by a text, and captures sys.stdout.

    The real stdin object, for programs that import it by name, gets other oddities: its readline drops the newline and
    raises StopIteration at the end.
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
        vars(sys)["stdin"] = MockStdinWithBuffer(self._text)
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
