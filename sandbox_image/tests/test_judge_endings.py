"""A program's output is what plain `python file` would print, whatever the program leaves to the interpreter's end."""

import functools
import subprocess
import tempfile

import pytest

from deepcoder_contracts.judge import Verdict
from deepcoder_sandbox import execution, limits
from deepcoder_sandbox.memory_file import MemoryFile
from deepcoder_sandbox.worker.packets import RunLimits
from deepcoder_sandbox.zygote_process import ENVIRONMENT, ZygoteProcess, _interpreter

ENDINGS = {
    "descriptor opened by number": "f = open(1, 'w')\nprint(3, file=f)",
    "descriptor opened by os": "import os\nf = os.fdopen(1, 'w')\nf.write('3\\n')",
    "descriptor opened by its path": "f = open('/proc/self/fd/1', 'a')\nprint(3, file=f)",
    "bytes": "f = open(1, 'wb')\nf.write(b'3\\n')",
    "a copy of the descriptor": "import os\nf = os.fdopen(os.dup(1), 'w')\nprint(3, file=f)",
    "a high descriptor": "import os\nos.dup2(1, 17)\nf = open(17, 'w')\nprint(3, file=f)",
    "many descriptors": "import os\nfs = [open(os.dup(1), 'w') for _ in range(40)]\nfor f in fs: f.write('3\\n')",
    "stdout replaced after it was written": "import io, sys\nsys.stdout.write('3\\n')\nsys.stdout = io.StringIO()",
    "stdout replaced by a file": "import sys\nsys.stdout = open(1, 'w')\nprint(3)",
    "stdout and its replacement written": "import sys\nprint(1)\nsys.stdout = open(1, 'w')\nprint(3)",
    "stdout wrapped anew": "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, 'utf-8')\nprint(3)",
    "stdout detached": "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.detach(), 'utf-8')\nprint(3)",
    "stdout detached and lost": "import sys\nprint(3)\nout = sys.stdout.detach()",
    "stdout is None": "import sys\nprint(3)\nsys.stdout = None",
    "stdout deleted": "import sys\nprint(3)\ndel sys.stdout",
    "stdout closed": "import sys\nprint(3)\nsys.stdout.close()",
    "stdout closed beneath": "import os\nprint(3)\nos.close(1)",
    "stdout that cannot be flushed": (
        "import sys\nclass Out:\n    def write(self, text): pass\nsys.stdout = Out()\nprint(3)"
    ),
    "stdout with a flush of its own": (
        "import os, sys\nclass Out:\n    kept = ''\n    def write(self, text): self.kept += text\n"
        "    def flush(self): os.write(1, self.kept.encode()); self.kept = ''\nsys.stdout = Out()\nprint(3)"
    ),
    "fast output": (
        "import os, sys\nfrom io import BytesIO, IOBase\nclass FastIO(IOBase):\n    newlines = 0\n"
        "    def __init__(self): self.buffer = BytesIO(); self.write = lambda s: self.buffer.write(s.encode())\n"
        "    def flush(self): os.write(1, self.buffer.getvalue()); self.buffer.truncate(0); self.buffer.seek(0)\n"
        "sys.stdout = FastIO()\nprint(3)"
    ),
    "a file of a class of its own": (
        "import io, os\nclass Out(io.RawIOBase):\n    def writable(self): return True\n"
        "    def write(self, data): return os.write(1, data)\nf = io.BufferedWriter(Out())\nf.write(b'3\\n')"
    ),
    "stderr replaced": "import sys\nsys.stderr = open(1, 'w')\nprint(3, file=sys.stderr)",
    "stderr closed": "import sys\nprint(3)\nsys.stderr.close()",
    "stdout's buffer": "import sys\nsys.stdout.buffer.write(b'3\\n')",
    "two writers": "f, g = open(1, 'w'), open(1, 'w')\ng.write('1\\n')\nf.write('3\\n')\nprint(2)",
    "a writer in a cycle": "f = open(1, 'w')\nf.write('3\\n')\nx = [f]\nx.append(x)\ndel f, x",
    "a writer in a function's namespace": "f = open(1, 'w')\ndef out(x): print(x, file=f)\nout(3)",
    "a writer in a closure": "def make():\n    f = open(1, 'w')\n    return lambda x: print(x, file=f)\nmake()(3)",
    "a writer of a module": "import math\nmath.out = open(1, 'w')\nmath.out.write('3\\n')",
    "a writer of a builtin's name": "import builtins\nbuiltins.out = open(1, 'w')\nout.write('3\\n')",
    "a writer of a living thread": (
        "import threading, time\ndef work():\n    f = open(1, 'w'); f.write('3\\n'); time.sleep(0.1)\n"
        "threading.Thread(target=work).start()"
    ),
    "output of a thread": "import threading\nthreading.Timer(0.05, print, (3,)).start()\nprint(1)",
    "a thread that makes a thread": (
        "from threading import Thread\nThread(target=lambda: Thread(target=print, args=(3,)).start()).start()"
    ),
    "a daemon": "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()\nprint(3)",
    "a pool of threads": (
        "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(2)\npool.submit(print, 3)"
    ),
    "atexit in its order": "import atexit\natexit.register(print, 1)\natexit.register(print, 2)\nprint(3)",
    "atexit past stdout's buffer": "import atexit, os\natexit.register(os.write, 1, b'2\\n')\nprint(3)",
    "atexit that opens": (
        "import atexit\ndef end():\n    global f\n    f = open(1, 'w'); f.write('3\\n')\natexit.register(end)"
    ),
    "atexit that fails": "import atexit\natexit.register(print, 3)\natexit.register(lambda: 1 / 0)",
    "atexit that leaves": "import atexit\natexit.register(exit, 3)\nprint(3)",
    "a thread past stdout's buffer": (
        "import os, threading\nprint(3)\ndef late():\n    threading.main_thread().join()\n    os.write(1, b'4\\n')\n"
        "threading.Thread(target=late).start()"
    ),
    "__del__ of an object": "class A:\n    def __del__(self): print(3)\na = A()",
    "__del__ of objects in a cycle": "class A:\n    def __del__(self): print(3)\na = A()\na.a = a\ndel a",
    "__del__ with names of the module": (
        "import math\nclass A:\n    def __del__(self): print(math.pi, x)\nx = 3\na = A()"
    ),
    "__del__ in its order": (
        "class A:\n    def __init__(self, n): self.n = n\n    def __del__(self): print(self.n)\n"
        "a = A(1)\nb = A(2)\nc = A(3)"
    ),
    "__del__ without a dictionary": "class A:\n    __slots__ = ()\n    def __del__(self): print(3)\na = A()",
    "__del__ of a generator's object": (
        "class A:\n    def __del__(self): print(3)\ndef g():\n    a = A()\n    yield 1\nx = g()\nnext(x)"
    ),
    "__del__ after SystemExit": "class A:\n    def __del__(self): print(3)\na = A()\nraise SystemExit(0)",
    "a generator that cleans up": "def g():\n    try: yield 1\n    finally: print(3)\nx = g()\nnext(x)",
    "a generator inside of another": (
        "def g():\n    try: yield 1\n    finally: print(3)\ndef h(): yield from g()\nx = h()\nnext(x)"
    ),
    "a coroutine that cleans up": (
        "import types\n@types.coroutine\ndef wait(): yield\n"
        "async def f():\n    try: await wait()\n    finally: print(3)\nx = f()\nx.send(None)"
    ),
    "a context that is left open": (
        "from contextlib import contextmanager\n@contextmanager\ndef c():\n    try: yield\n    finally: print(3)\n"
        "x = c()\nx.__enter__()"
    ),
    "a weak reference": "import weakref\nclass A: pass\na = A()\nr = weakref.ref(a, lambda _: print(3))",
    "a finaliser": "import weakref\nclass A: pass\na = A()\nweakref.finalize(a, print, 3)",
    "a proxy of what is gone": "import weakref\nclass A: pass\nproxy = weakref.proxy(A())\nprint(3)",
    "an object that does not tell its class": (
        "class A:\n    @property\n    def __class__(self): raise ValueError\na = A()\nf = open(1, 'w')\nf.write('3\\n')"
    ),
    "C's stdout": "import ctypes\nctypes.CDLL(None).puts(b'3')",
    "leaving with nothing": "print(3)\nraise SystemExit",
    "leaving with a number": "print(3)\nraise SystemExit(256)",
    "leaving with a large number": "print(3)\nraise SystemExit(1 << 80)",
    "leaving with a text": "import sys\nprint(3)\nsys.stderr = None\nsys.exit('text')",
    "leaving with a writer open": "f = open(1, 'w')\nf.write('3\\n')\nexit()",
    "leaving at once": "import os\nf = open(1, 'w')\nf.write('3\\n')\nprint(4)\nos._exit(0)",
    "an exception with a writer open": "f = open(1, 'w')\nf.write('3\\n')\n1 / 0",
    "an exception in a function with a writer": (
        "def main():\n    f = open(1, 'w')\n    f.write('3\\n')\n    1 / 0\nmain()"
    ),
    "a hook for exceptions": "import sys\nsys.excepthook = lambda *_: print(3)\n1 / 0",
    "a hook for exceptions that leaves": "import sys\nprint(3)\nsys.excepthook = lambda *_: sys.exit(0)\n1 / 0",
    "a reader": "print(3)\nf = open(0)\nf.readline()",
    "a file that was closed": "with open(1, 'w', closefd=False) as f: f.write('3\\n')",
    "nothing": "",
}


@functools.cache  # for all tiers
def plain(code: str) -> tuple[bytes, int]:
    """What the interpreter itself makes of it: the output and the exit status."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file, tempfile.TemporaryFile() as out:
        file.write(code)
        file.flush()
        done = subprocess.run(
            [_interpreter(), file.name], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL,
            env=ENVIRONMENT, cwd="/", timeout=60, check=False,
        )  # fmt: skip
        out.seek(0)  # a file, as the judge's is
        return out.read(), done.returncode


def ours(code: str, zygote) -> tuple[bytes, int | None]:
    """What the judge reads of it."""
    source = code.encode()
    with MemoryFile("code", source, sealable=True) as file:
        bounds = RunLimits(cpu_limit_s=5, wall_limit_s=15, memory_limit_mb=256, file_bytes=1 << 20)
        program = execution.Program(file, len(source), "stdin")
        run = execution.execute(zygote, program, b"", bounds, float("inf"), limits.CLAIM_BYTES)
    return run.stdout, run.ended.exit_status


@pytest.mark.parametrize("code", ENDINGS.values(), ids=ENDINGS)
def test_output_and_exit_status_are_the_plain_interpreters(slot, code):
    assert ours(code, slot.ensure_zygote()) == plain(code)


def test_program_with_many_objects_that_has_filled_its_memory_ends_by_itself(slot):
    """There is no room for a list of all its objects."""
    code = (
        "import weakref\nkept, rest = [[] for _ in range(300_000)], []\n"
        "try:\n    while True: rest.append(bytearray(1 << 20))\nexcept MemoryError: rest.pop()\nprint(3)"
    )
    assert ours(code, slot.ensure_zygote()) == (b"3\n", 0)


SURROUNDINGS = {
    "calls within calls": "def f(n):\n    print(n)\n    f(n + 1)\nf(0)",
    "calls within calls, after a larger limit": (
        "import sys\nsys.setrecursionlimit(3000)\ndef f(n):\n    print(n)\n    f(n + 1)\nf(0)"
    ),
    "calls within calls of a thread": (
        "import threading\ndef f(n):\n    print(n)\n    f(n + 1)\nthreading.Thread(target=f, args=(0,)).start()"
    ),
    "the locale of the environment": "import locale\nprint(locale.setlocale(locale.LC_ALL, ''), f'{12345678:n}')",
}
"""What a program may find around it, short of the names of files and of who runs it."""


@pytest.mark.parametrize("code", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_program_finds_what_the_plain_interpreter_has(slot, code):
    assert ours(code, slot.ensure_zygote()) == plain(code)


def test_hashes_and_random_numbers_are_the_same_in_every_zygote(slot):
    code = "import random\nprint(hash('text'), random.random())"
    another = ZygoteProcess(slot.ensure_zygote().config)
    try:
        assert ours(code, another) == ours(code, slot.ensure_zygote())
    finally:
        another.kill()


@pytest.mark.parametrize("scoring", ["strict", "taco-compat"])
def test_what_only_the_end_writes_is_compared(judge_once, scoring):
    assert judge_once("f = open(1, 'w')\nf.write('3\\n')", ("", "3"), scoring=scoring).passed is True


def test_output_before_a_crash_is_compared_where_a_crash_passes(judge_once):
    assert judge_once("f = open(1, 'w')\nf.write('3\\n')\n1 / 0", ("", "3"), scoring="taco-compat").passed is True


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("while True: pass", Verdict.TIME_LIMIT),
        ("time.sleep(60)", Verdict.TIME_LIMIT),
        ("while True: print('x' * 1000)", Verdict.OUTPUT_LIMIT),
        ("os._exit(1)", Verdict.RUNTIME_ERROR),
        ("os.abort()", Verdict.RUNTIME_ERROR),
    ],
)
def test_end_is_inside_the_limits(judge, body, expected):
    code = f"import os, time\nclass A:\n    def __del__(self):\n        {body}\na = A()\nprint(3)"
    assert [verdict.verdict for verdict in judge(code, ("", "3"), time_limit_s=0.3).verdicts] == [expected]
