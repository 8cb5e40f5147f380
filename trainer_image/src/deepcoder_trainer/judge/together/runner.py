"""The process of one test on the remote side: it sets its own limits, then becomes the program.

It is sent as text and run by `harness`, so it stands alone and supports old Python versions. What it writes to its
report descriptor is only a claim about itself: why it failed, what a function returned, or that a script reached its
end. The mark for a script's end is in memory that the program shares, so it distinguishes an early exit from the end,
and no more.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import resource
import sys
import threading
import traceback
import types
from typing import Any

SETTINGS = "DEEPCODER_SETTINGS"

_USUAL_MODULES = (
    "bisect collections copy datetime fractions functools heapq io itertools math operator os random re string sys time"
)
_USUAL_NAMES = {
    "bisect": "bisect_left bisect_right insort",
    "collections": "ChainMap Counter OrderedDict defaultdict deque",
    "copy": "deepcopy",
    "functools": "cache cmp_to_key lru_cache partial reduce",
    "heapq": "heapify heappop heappush heappushpop heapreplace merge nlargest nsmallest",
    "itertools": "accumulate chain combinations count cycle groupby islice pairwise permutations product repeat"
    " zip_longest",
    "math": "atan2 ceil comb cos exp fabs factorial floor gcd inf isqrt log log10 log2 pi prod sin sqrt tan",
    "operator": "iand itemgetter or_ sub xor",
    "os.path": "commonprefix",
    "random": "randrange shuffle",
    "re": "search",
    "string": "ascii_lowercase ascii_uppercase",
    "sys": "stdin stdout",
    "typing": "Any Callable Deque Dict Generator Iterable Iterator List Optional Set Tuple Union",
}
"""What a program that is called as a function finds, as in our own judge; an old Python lacks some."""


def main(settings: dict[str, Any]) -> int:
    """Run the program with these settings. Return its exit status."""
    report = settings["report"]
    try:
        names = _usual_names() if settings["kind"] == "function" else {}
        _take_limits(settings)
        with os.fdopen(settings["source"], "rb") as file:
            source = file.read()
        try:
            code = compile(source, "main.py", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, OverflowError) as error:
            _claim(report, failure="compile", detail=traceback.format_exception_only(type(error), error)[-1].strip())
            return 1
        return _run(code, settings, names)
    except MemoryError:
        os.write(report, b'{"failure":"memory"}')
        return 1


def _usual_names() -> dict[str, Any]:
    names: dict[str, Any] = {}
    for module, listed in _USUAL_NAMES.items():
        found = vars(importlib.import_module(module))
        names.update({name: found[name] for name in listed.split() if name in found})
    names["re_search"] = names.pop("search")
    for module in _USUAL_MODULES.split():
        names[module] = importlib.import_module(module)
    return names


def _take_limits(settings: dict[str, Any]) -> None:
    with open("/proc/self/statm") as file:
        idle = int(file.read().split()[0]) * resource.getpagesize()
    memory = idle + (settings["memory_limit_mb"] << 20)
    seconds = int(settings["time_limit_s"]) + 2
    for limit, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, settings["output_bytes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))


def _run(code: types.CodeType, settings: dict[str, Any], names: dict[str, Any]) -> int:
    kind, report = settings["kind"], settings["report"]
    module = types.ModuleType("__main__")
    module.__dict__.update(__builtins__=sys.modules["builtins"], __file__="main.py")
    if kind == "function":
        module.__name__ = "solution"  # so that `if __name__ == "__main__"` blocks do not run
        module.__dict__.update(names)
        module.__dict__.pop(settings["fn_name"], None)  # it is for the program to define, even if it is called `gcd`
    sys.modules[module.__name__] = module
    sys.argv = ["main.py"]
    status = 0
    try:
        given = sys.stdin.read() if kind != "stdin" else ""
        exec(code, module.__dict__)
        if kind == "script":
            word, _, text = given.partition("\n")
            exec(compile(text, "test.py", "exec", dont_inherit=True), module.__dict__)
            _claim(report, completed=word)
        elif kind == "function":
            _call(module, settings["fn_name"], given, report, settings["output_bytes"] // 2)
    except SystemExit as leaving:
        status = _exit_status(leaving)
        if kind != "stdin":
            _claim(report, failure="exit", detail="the program left before its end")
    except MemoryError:
        raise
    except BaseException:
        traceback.print_exc()
        status = 1
    return _finish(status)


def _call(module: types.ModuleType, name: str, given: str, report: int, most: int) -> None:
    usual = _limit_digits(0)
    arguments = [json.loads(line) for line in given.split("\n") if line.strip()]
    _limit_digits(usual)  # the program runs with the interpreter's defaults, as in our own judge
    owner, _, attribute = name.rpartition(".")
    if not owner and hasattr(getattr(module, "Solution", None), attribute):
        owner = "Solution"
    holder = module if not owner else getattr(module, owner)()
    value = getattr(holder, attribute)(*arguments)
    _limit_digits(0)
    try:
        answer = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        _claim(report, opaque=type(value).__name__[:200])
        return
    if len(answer) > most:
        _claim(report, failure="output", detail="returned more than %d bytes" % most)
    else:
        _claim(report, value=answer)


def _limit_digits(most: int) -> int:
    """Set the largest number of digits of an integer that is parsed or printed; 0: no limit. Return the old one."""
    usual: int = getattr(sys, "get_int_max_str_digits", lambda: 0)()
    getattr(sys, "set_int_max_str_digits", lambda _: None)(most)
    return usual


def _exit_status(leaving: SystemExit) -> int:
    if leaving.code is None:
        return 0
    if isinstance(leaving.code, int):
        return leaving.code & 0xFF
    sys.stderr.write(str(leaving.code) + "\n")
    return 1


def _finish(status: int) -> int:
    """Do what an interpreter does at exit, except for destroying its modules: threads, exit handlers, flush."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        if not getattr(sys.stdout, "closed", True):
            sys.stdout.flush()
    except MemoryError:
        raise
    except BaseException:
        return status or 120
    return status


def _claim(report: int, **fields: str) -> None:
    data = json.dumps(fields).encode()
    while data:
        data = data[os.write(report, data) :]


if __name__ == "__main__":
    code = main(json.loads(os.environ.pop(SETTINGS)))
    os._exit(code)
