"""A program's end: output that `python file` would still write after the last line, at little cost if there is none.

At its end an interpreter waits for threads, calls `atexit` handlers, flushes, and then tears itself down: it finalises
every object, which is also what flushes files that are open for writing. The teardown touches all memory that the
zygote shares with its copies, which costs more than a short test. So it is done only if something may be left to write.
In that case this module raises SystemExit, the runner's frames are left, and the interpreter shuts down.

The program's text is checked first, because searching the objects of a program with millions of them takes longer than
the rest of its end. A program that hides what it does from this check, for example by building a name at run time,
loses at most its own output.
"""

from __future__ import annotations

import _io
import atexit
import contextlib
import gc
import sys
import threading
import traceback
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

_CERTAIN = b"__del__ weakref ctypes"
"""Words in a program's text for what the end may run or flush, and what shows in no object."""

_HINTS = _CERTAIN + b" open IO Buffered yield async"
"""`_CERTAIN`, and words for what shows in objects. One string, because each object's page would be copied."""

_ODD = (_io._IOBase, GeneratorType, CoroutineType, AsyncGeneratorType)
_READERS = (_io.FileIO, _io.BufferedReader, _io.BytesIO, _io.StringIO)
"""Files for which the end writes nothing. FileIO has no buffer."""


def exit_status(leaving: SystemExit) -> int:
    """Return the exit status that an interpreter makes of it; print a code that is no number."""
    code = leaving.code
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF if -(1 << 63) <= code < 1 << 63 else 0xFF
    with contextlib.suppress(BaseException):
        if sys.stderr is not None:  # else print would take stdout
            print(code, file=sys.stderr)  # noqa: T201
    return 1


def show_uncaught() -> int:
    """Show the exception that ended the program; return the exit status."""
    kind, error, trace = sys.exc_info()
    sys.last_type, sys.last_value, sys.last_traceback = kind, error, trace
    _flush()
    try:
        if sys.excepthook is sys.__excepthook__:
            traceback.print_exc()  # it knows the program's lines
        else:
            sys.excepthook(kind, error, trace)  # type: ignore[arg-type]
    except SystemExit as leaving:
        return exit_status(leaving)
    except BaseException:  # a hook that fails is only reported on stderr
        return 1
    return 1


def finish(status: int, source: bytes) -> int:
    """Finish a program that ended with `status`; return its exit status.

    Raises SystemExit if the interpreter itself has to end, with all frames above left; MemoryError.
    """
    if len(threading._active) > 1 or threading._limbo or atexit._ncallbacks():  # type: ignore[attr-defined]
        _flush()
        _await_threads_and_callbacks()
    if not (_flushed() and _nothing_is_left(source)):
        gc.unfreeze()  # the program's module is from the zygote
        raise SystemExit(status)
    return status


def _await_threads_and_callbacks() -> None:
    for step in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        with contextlib.suppress(BaseException):  # only reported on stderr
            step()


def _flush() -> None:
    """Flush as after the program's last line. Failures show again at the end."""
    for name in ("stderr", "stdout"):
        with contextlib.suppress(Exception):
            getattr(sys, name).flush()


def _flushed() -> bool:
    """Flush stdout and stderr; return whether an interpreter would do no more with them. Raises MemoryError."""
    try:
        out, error = sys.stdout, sys.stderr
        out.flush()
        error.flush()
        return out is sys.__stdout__ and error is sys.__stderr__
    except MemoryError:
        raise
    except Exception:  # closed, detached, deleted
        return False


def _nothing_is_left(source: bytes) -> bool:
    for word in _HINTS.split():
        if word in source:
            break
    else:
        return True
    if any(word in source for word in _CERTAIN.split()):
        return False
    try:
        return not any(map(_is_unfinished, _odd_objects()))
    except Exception:  # what only looks like a file
        return False


def _odd_objects() -> list[Any]:
    """Return the program's files and generators."""
    objects = gc.get_objects()  # the zygote's own are frozen, and not among them
    odd = {kind for kind in set(map(type, objects)) if issubclass(kind, _ODD)}
    return [found for found in objects if type(found) in odd] if odd else []


def _is_unfinished(found: Any) -> bool:
    """Return whether finalising a file may write, or a generator may run."""
    if isinstance(found, GeneratorType):
        return found.gi_suspended and bool(found.gi_code.co_exceptiontable)
    if isinstance(found, CoroutineType):
        return found.cr_suspended and bool(found.cr_code.co_exceptiontable)
    if type(found) is _io.TextIOWrapper:
        found = found.buffer
    return type(found) not in _READERS
