"""Runs the program inside its confinement: as a script with input on stdin, or by calling a function.

Once the program starts, it owns this process, and nothing in the process is trusted afterwards. Its reports are only
claims about itself (an output, a return value, a failure). Every claim that earns anything is compared elsewhere with
data that this process never had.

The first runner of a submission compiles the program, writes the code object to the code descriptor, and seals it. The
judge tells later runners that it is sealed, and they load it. So a submission is compiled once, within the limits, and
no test can change what the next one runs. A code object that is too large or too deep is compiled each time.

A failure before the program's first instruction is raised, and is the judge's failure. Only failures that the program's
text alone can cause (it does not compile, or needs more memory than there is) are claims.
"""

from __future__ import annotations

import builtins
import fcntl
import json
import linecache
import marshal
import os
import sys
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any

from deepcoder_sandbox.worker import interpreter_exit, recursion, taco, values
from deepcoder_sandbox.worker.packets import PlainJob

STDIN, STDOUT, STDERR, REPORT, CODE = range(5)
"""Descriptors of a runner."""

FILENAME = "main.py"
"""The program's name in tracebacks."""

STORED_CODE_BYTES = 8 << 20
"""Largest code object that is kept for later runners: it is held in memory outside the program's limit."""

_SEALED = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_DETAIL_BYTES = 500
"""In ASCII, which takes at most six times as many bytes in JSON: every claim fits the room for it."""

_source = b""
_OUT_OF_MEMORY = b'{"failure":"memory"}'


def read_all(descriptor: int, size: int | None = None) -> bytes:
    """Return a memory file's whole content, or its first `size` bytes, whatever its offset."""
    if size is None:
        size = os.fstat(descriptor).st_size
    content = os.pread(descriptor, size, 0)  # all of it: the kernel reads up to 2 GiB at a time
    while len(content) < size:
        part = os.pread(descriptor, size - len(content), len(content))
        if not part:
            break
        content += part
    return content


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def report(descriptor: int, **fields: Any) -> None:
    """Write a claim that the judge reads after the end."""
    write_all(descriptor, json.dumps(fields).encode())


def prepare_zygote() -> None:
    """Do once, in the zygote, what is the same for every program: its module, its arguments, where its source is."""
    recursion.prepare_zygote()
    unload()
    sys.argv = [FILENAME]
    cache: dict[str, Any] = linecache.cache  # an entry of one item is asked for the text when a traceback needs it
    cache[FILENAME] = (lambda: _source.decode("utf-8", "replace"),)


def unload() -> None:
    """Put an empty module in the place of a program's."""
    global _source
    _source = b""
    sys.modules["__main__"] = main = ModuleType("__main__")
    vars(main).update(__builtins__=builtins, __file__=FILENAME)


def run(job: PlainJob, begin: Callable[[], None]) -> int:
    """Compile or load the program, run it once and return the exit status Python would have had.

    `begin` is called before its first instruction. Raises SystemExit if the interpreter itself has to end
    (`deepcoder_sandbox.worker.interpreter_exit`).
    """
    loaded = _load(job)
    begin()
    return _execute(*loaded, job[0], taco.PREAMBLE if job[-1] else {}) if loaded else 1


def _load(job: PlainJob) -> tuple[CodeType, str, list[Any]] | None:
    """Return the program, the name of its function and the arguments; None if there is nothing to run."""
    try:
        _, _, source_bytes, name_bytes, compiled_bytes, _ = job
        code_at = source_bytes + name_bytes
        content = read_all(CODE, code_at + compiled_bytes)
        code = _code_object(content[:source_bytes], memoryview(content)[code_at:], code_at)
        fn_name = content[source_bytes:code_at].decode()
        return (code, fn_name, _arguments() if fn_name else []) if code is not None else None
    except MemoryError:
        os.write(REPORT, _OUT_OF_MEMORY)
        return None


def _code_object(source: bytes, compiled: memoryview, code_at: int) -> CodeType | None:
    """Return the code object at `code_at` of the code descriptor, or make it and store it there."""
    global _source
    _source = source
    if compiled:
        loaded: CodeType = marshal.loads(compiled)  # we compiled and sealed it  # noqa: S302
        os.close(CODE)
        return loaded
    try:
        code = compile(_source, FILENAME, "exec", dont_inherit=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever it is, the text caused it
        where = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        message = _cut(f"{type(error).__name__}: {getattr(error, 'msg', error)}")
        report(REPORT, failure="compile", detail=message + where)
        return None
    _keep(code, code_at)
    os.close(CODE)
    return code


def _keep(code: CodeType, code_at: int) -> None:
    """Store the code object for later runners, if it can be, and seal it, which shows that it is there."""
    try:
        stored = marshal.dumps(code)
    except ValueError:  # functions within functions, 1000 deep
        return
    if len(stored) <= STORED_CODE_BYTES:
        os.lseek(CODE, code_at, os.SEEK_SET)
        write_all(CODE, stored)
        fcntl.fcntl(CODE, fcntl.F_ADD_SEALS, _SEALED)


def _cut(detail: str) -> str:
    """Truncate a claim's detail to the room for it, however its characters are written."""
    return detail.encode("ascii", "backslashreplace")[:_DETAIL_BYTES].decode()


def _execute(code: CodeType, fn_name: str, arguments: list[Any], kind: str, preamble: dict[str, Any]) -> int:
    module = sys.modules["__main__"]
    module.__dict__.update(preamble)
    module.__dict__.pop(fn_name, None)  # it is for the program to define, even if it is called `gcd`
    if kind == "function":
        module.__name__ = "solution"  # a `__main__` block is not for callers of a function
        sys.modules["solution"] = module
    status = 0
    recursion.start_anew()
    try:
        # Unpacked, because the interpreter never specializes this form: a specialized call of exec, which a rehearsed
        # zygote would make, does not count as a nested call, and the program would have one more than a script.
        exec(*(code, module.__dict__))  # noqa: S102
        if kind == "script":
            _run_appended_test(module)
        elif fn_name:
            answer = values.encode(find_function(module, fn_name)(*arguments))
            if len(answer) > values.MAX_BYTES:
                report(REPORT, failure="output", detail=f"returned more than {values.MAX_BYTES} bytes")
            else:
                write_all(REPORT, answer)
    except SystemExit as leaving:
        status = interpreter_exit.exit_status(leaving)
        if kind != "stdin":
            report(REPORT, failure="exit", detail="the program left before its end")
            status = status or 1
    except MemoryError:
        os.write(REPORT, _OUT_OF_MEMORY)
        status = 1
    except BaseException:
        status = interpreter_exit.show_uncaught()
    try:
        return interpreter_exit.finish(status, _source)
    except MemoryError:
        os.write(REPORT, _OUT_OF_MEMORY)
        return 1


def _arguments() -> list[Any]:
    """Read a JSON value per line; integers of any size."""
    text = read_all(STDIN).decode()
    usual = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    finally:
        sys.set_int_max_str_digits(usual)


def _run_appended_test(module: ModuleType) -> None:
    """Run the test's code in the program's namespace. The input's first line is a word to report at the end.

    The word only shows an early exit: program and test share a process, so a malicious program can read the word from
    its input (`os.pread`) and write the claim itself.
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
