"""Running the program inside its confinement: as a script on stdin, or by calling a function.

The program owns this process once it starts: nothing in it is trusted afterwards. What it reports can only be a claim
about itself (an output, a return value, a failure), and every claim that earns anything is compared elsewhere against
what this process never held.

The first runner of a submission compiles, leaves the code object in the code descriptor and seals it; the later ones,
told by the judge that it is sealed, load it, so that a submission is compiled once, inside the limits, and no test can
alter what the next one runs. A code object too large to be kept is made anew each time.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import fcntl
import json
import linecache
import marshal
import os
import sys
import threading
import traceback
from types import CodeType, ModuleType
from typing import Any, NoReturn

from deepcoder_sandbox.worker import taco, values
from deepcoder_sandbox.worker.packets import Job

STDIN, STDOUT, STDERR, REPORT, CODE = range(5)
"""Descriptors of a runner."""

FILENAME = "main.py"
"""The program's name in tracebacks."""

STORED_CODE_BYTES = 8 << 20
"""Largest code object that is kept for later runners: it is held in memory outside the program's limit."""

_SEALED = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_main = ModuleType("__main__")
_source = b""
_OUT_OF_MEMORY = b'{"failure":"memory"}'


def read_all(descriptor: int, size: int | None = None) -> bytes:
    """Return a memory file's whole content, or its first `size` bytes, whatever its offset."""
    if size is None:
        size = os.fstat(descriptor).st_size
    parts: list[bytes] = []
    offset = 0
    while offset < size:
        part = os.pread(descriptor, size - offset, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def report(descriptor: int, **fields: Any) -> None:
    """Leave a claim for the judge to read after the end."""
    write_all(descriptor, json.dumps(fields).encode())


def prepare_zygote() -> None:
    """Do once, in the zygote, what is the same for every program: its module, its arguments, where its source is."""
    sys.modules["__main__"] = _main
    vars(_main).update(__builtins__=builtins, __file__=FILENAME)
    sys.argv = [FILENAME]
    cache: dict[str, Any] = linecache.cache  # an entry of one item is asked for the text when a traceback needs it
    cache[FILENAME] = (lambda: _source.decode("utf-8", "replace"),)


def run(job: Job) -> NoReturn:
    """Compile or load the program, run it once and leave with the exit status Python would have had."""
    status = 1
    try:
        content = read_all(CODE, job.source_bytes + job.name_bytes + job.compiled_bytes)
        code_at = job.source_bytes + job.name_bytes
        code = _code_object(content[: job.source_bytes], memoryview(content)[code_at:], code_at)
        if code is not None:
            fn_name = content[job.source_bytes : code_at].decode()
            status = _execute(code, job.kind, fn_name, taco.PREAMBLE if job.preamble else {})
    except MemoryError:
        os.write(REPORT, _OUT_OF_MEMORY)
    finally:
        os._exit(status)


def _code_object(source: bytes, compiled: memoryview, code_at: int) -> CodeType | None:
    """Return the code object that lies `code_at` of the code descriptor, or make it and leave it there."""
    global _source
    _source = source
    if compiled:
        loaded: CodeType = marshal.loads(compiled)  # our own compile's, and sealed since  # noqa: S302
        os.close(CODE)
        return loaded
    try:
        code = compile(_source, FILENAME, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, OverflowError) as error:
        line = traceback.format_exception_only(error)[-1].strip()
        where = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        report(REPORT, failure="compile", detail=line[:500] + where)
        return None
    stored = marshal.dumps(code)
    if len(stored) <= STORED_CODE_BYTES:
        os.lseek(CODE, code_at, os.SEEK_SET)
        write_all(CODE, stored)
    del stored
    fcntl.fcntl(CODE, fcntl.F_ADD_SEALS, _SEALED)
    os.close(CODE)
    return code


def _execute(code: CodeType, kind: str, fn_name: str, preamble: dict[str, Any]) -> int:
    module = _main
    module.__dict__.update(preamble)
    if kind == "function":
        module.__name__ = "solution"  # a block for the command line is not for the caller of a function
        sys.modules["solution"] = module
    status = 0
    try:
        arguments = _arguments() if fn_name else []
        exec(code, module.__dict__)  # noqa: S102
        if kind == "script":
            _run_appended_test(module)
        elif fn_name:
            answer = values.encode(find_function(module, fn_name)(*arguments))
            if len(answer) > values.MAX_BYTES:
                report(REPORT, failure="output", detail=f"returned more than {values.MAX_BYTES} bytes")
            else:
                write_all(REPORT, answer)
    except SystemExit as leaving:
        status = _exit_status(leaving)
        if kind != "stdin":
            report(REPORT, failure="exit", detail="the program left before its end")
            status = status or 1
    except MemoryError:
        os.write(REPORT, _OUT_OF_MEMORY)
        status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    return _finish(status)


def _finish(status: int) -> int:
    """What an interpreter does at its end, short of tearing itself down."""
    try:
        if len(threading._active) > 1 or threading._limbo:  # type: ignore[attr-defined]
            threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are not daemons
        if atexit._ncallbacks():
            atexit._run_exitfuncs()
        if not getattr(sys.stdout, "closed", True):
            sys.stdout.flush()
    except MemoryError:
        os.write(REPORT, _OUT_OF_MEMORY)
        return 1
    except BaseException:
        status = status or 120
    with contextlib.suppress(BaseException):
        sys.stderr.flush()
    return status


def _exit_status(leaving: SystemExit) -> int:
    if leaving.code is None:
        return 0
    if isinstance(leaving.code, int):
        return leaving.code & 0xFF
    print(leaving.code, file=sys.stderr)  # noqa: T201
    return 1


def _arguments() -> list[Any]:
    """One JSON value a line, integers of any length."""
    text = read_all(STDIN).decode()
    usual = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    finally:
        sys.set_int_max_str_digits(usual)


def _run_appended_test(module: ModuleType) -> None:
    """Run the test's code in the program's namespace; its first line is a word that tells that it came to its end.

    It tells an early exit from the end, no more: program and test share a process, so a program that sets out to can
    read the word from its input (`os.pread`) and write the claim itself.
    """
    word, _, text = read_all(STDIN).decode().partition("\n")
    exec(compile(text, "test.py", "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    report(REPORT, completed=word)


def find_function(module: ModuleType, name: str) -> Any:
    """Return what `name` calls: `Class.method` of an instance, a method of class Solution, or a top-level function."""
    owner, _, attribute = name.rpartition(".")
    if not owner and hasattr(getattr(module, "Solution", None), attribute):
        owner = "Solution"
    holder: Any = module if not owner else getattr(module, owner)()
    return getattr(holder, attribute)
