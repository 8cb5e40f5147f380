"""Programs that take all they can get, or end as nobody foresaw: a verdict on them, in time, never `error`."""

import os
import subprocess
import sys

import pytest

from deepcoder_contracts.judge import Verdict
from deepcoder_sandbox import step_alarm

GREED = {
    "private pages": "mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)",
    "shared pages": "mmap.mmap(-1, size, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)",
    "shrunk shared pages": "shrunk(-1)",
    "/dev/zero": "shrunk(os.open('/dev/zero', os.O_RDWR))",
    "unreserved pages": "mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)",
    "a larger output": "mapped(1)",
    "a larger report": "mapped(3)",
    "objects": "bytearray(size)",
}


@pytest.mark.parametrize("name", GREED)
def test_memory_beyond_the_limit_cannot_be_had_in_any_way(judge, name):
    code = f"""
import ctypes, mmap, os, resource
size = 256 << 20
def mapped(fd):
    os.ftruncate(fd, size)
    return mmap.mmap(fd, size)
def shrunk(fd):  # pieces that fit, each unmapped but for a page: a shared one keeps them all
    pieces = []
    while len(pieces) << 24 < size:
        pieces.append(mmap.mmap(fd, 1 << 24))
        for at in range(0, 1 << 24, 4096): pieces[-1][at] = 1
        second = ctypes.addressof(ctypes.c_char.from_buffer(pieces[-1])) + 4096
        ctypes.CDLL(None).munmap(ctypes.c_void_p(second), ctypes.c_size_t((1 << 24) - 4096))
    return dict()
try:
    got = {GREED[name]}
    for at in range(0, size, 4096): got[at] = 1
    print("got", size)
except (OSError, ValueError, MemoryError): print("refused")
"""
    answer = judge(code, ("", "refused"), memory_limit_mb=64, time_limit_s=5)
    first = answer.verdicts[0].verdict
    assert first in (Verdict.PASSED, Verdict.MEMORY_LIMIT, Verdict.OUTPUT_LIMIT), answer


def test_program_finds_the_builtins_of_a_plain_interpreter(judge):
    code = "import builtins\nprint(*sorted(dir(builtins)))"
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert judge(code, ("", plain.stdout)).passed is True


def test_kernel_memory_for_pipes_and_locks_is_small(judge):
    code = """
import ctypes, fcntl, os, struct, threading
held, bigger, locks = [], 0, 0
pipes, have_tables_of_their_own = [], threading.Barrier(4)
def fill():
    global bigger
    ctypes.CDLL(None).syscall(436, 1 << 20, 1 << 20, 2)  # close_range: CLOSE_RANGE_UNSHARE
    have_tables_of_their_own.wait()
    try:
        while True:
            reading, writing = os.pipe()
            pipes.append((reading, writing))
            os.set_blocking(writing, False)
            try: fcntl.fcntl(writing, 1031, 1 << 20); bigger += 1
            except OSError: pass
            try:
                while True: held.append(os.write(writing, bytes(65536)))
            except BlockingIOError: pass
    except OSError: pass
threads = [threading.Thread(target=fill) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for at in range(10):
    try: fcntl.fcntl(1, 6, struct.pack("hhqqi4x", 1, 0, 2 * at, 1, 0)); locks += 1
    except OSError: pass
print(bigger, locks, sum(held) <= 4 << 20)
"""
    assert judge(code, ("", "0 0 True")).passed is True


EXIT_OF_A_THREAD = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
START = f"""
import ctypes, os, threading, time
def leave(): ctypes.CDLL(None).syscall({EXIT_OF_A_THREAD}, 0)
"""

ODD_ENDS = {
    "first thread leaves, another spins": (
        "def f():\n    while True: pass\nthreading.Thread(target=f, daemon=True).start()\nleave()",
        {Verdict.TIME_LIMIT},
    ),
    "first thread leaves, another sleeps": (
        "threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\nleave()",
        {Verdict.TIME_LIMIT},
    ),
    "first thread leaves, another goes on": (
        "def f():\n    time.sleep(0.1); os.write(1, b'17'); os._exit(0)\nthreading.Thread(target=f).start()\nleave()",
        {Verdict.PASSED, Verdict.RUNTIME_ERROR},
    ),
    "makes threads without end": (
        "while True:\n    thread = threading.Thread(target=int)\n    thread.start(); thread.join()",
        {Verdict.TIME_LIMIT},
    ),
    "closes all it has": (  # nothing is heard of it any more
        "os.closerange(0, 100)\nwhile True: time.sleep(0.01)",
        {Verdict.TIME_LIMIT, Verdict.RUNTIME_ERROR},
    ),
    "stops itself": (
        "import ctypes\nfor number in (20, 21, 22): ctypes.CDLL(None).kill(os.getpid(), number)\nprint(17)",
        {Verdict.PASSED, Verdict.TIME_LIMIT},
    ),
}


@pytest.mark.parametrize("scoring", ["strict", "livecodebench"])
@pytest.mark.parametrize("name", ODD_ENDS)
def test_odd_end_is_the_programs_own_and_comes_in_time(judge, monkeypatch, name, scoring):
    monkeypatch.setattr(step_alarm, "ALARM_GRACE_S", 0.2)  # some do not hear their alarm
    code, expected = ODD_ENDS[name]
    answer = judge(START + code, ("", "17"), scoring=scoring, time_limit_s=0.3)
    assert answer.verdicts[0].verdict in expected, answer


@pytest.mark.parametrize("before", ["", "if input() == '1': sys.exit()\n"], ids=["first test", "second test"])
def test_program_that_hangs_up_and_goes_on_keeps_the_limit_of_its_test(judge_once, monkeypatch, before):
    monkeypatch.setattr(step_alarm, "ALARM_GRACE_S", 0.2)
    forever = "while True:\n    try:\n        while True: pass\n    except Exception: pass"
    code = f"import os, sys\n{before}os.close(3)\n{forever}"
    answer = judge_once(code, ("1", ""), *[("2", "")] * 40, scoring="livecodebench", time_limit_s=0.3)
    last = next(verdict for verdict in answer.verdicts if verdict.verdict is not Verdict.PASSED)
    assert last.verdict is Verdict.TIME_LIMIT, answer
    assert last.seconds < 5, "not the 58 s of all tests"
    assert answer.lcb.error_code == -5


@pytest.mark.parametrize("length", [9, 20_000], ids=["in a packet", "in a file"])
def test_program_that_is_still_loading_finds_no_input(judge_once, length):
    """With the input it could compute for the limit of loading, and then again for that of the first test."""
    code = """
import os, sys
seen, frame = [], sys._getframe()
while frame:
    seen += [str(value) for value in frame.f_locals.values() if isinstance(value, (bytes, str))]
    frame = frame.f_back
os.set_blocking(3, False)
for read in (lambda: os.read(3, 1 << 20), lambda: os.pread(5, 1 << 20, 0)):
    try: seen.append(str(read()))
    except OSError: pass
os.set_blocking(3, True)
def f(word): return any(word in each for each in seen)
"""
    tests = [(f'"{"4711" * length}"', "false")] * 2
    answer = judge_once(code, *tests, kind="function", fn_name="f", scoring="livecodebench")
    assert answer.passed is True, answer


def test_program_that_says_for_its_runner_that_it_is_ready_gains_no_time(judge_once):
    answer = judge_once("import os\nos.write(3, b'prepared')\nprint(17)", ("", "17"), scoring="livecodebench")
    assert answer.verdicts[0].verdict is Verdict.RUNTIME_ERROR, answer


@pytest.mark.parametrize("scoring", ["strict", "livecodebench"])
def test_flags_that_a_program_gives_its_descriptors_do_not_reach_the_next_one(judge_once, scoring):
    change = "import fcntl\nfor each in range(3): fcntl.fcntl(each, 4, 0o6000)"
    assert judge_once(change, ("", ""), scoring=scoring).passed is True
    look = "import fcntl\nprint([fcntl.fcntl(each, 3) & 0o6000 for each in (0, 2)])"
    assert judge_once(look, ("", "[0, 0]"), scoring=scoring).passed is True


def test_program_cannot_claim_that_the_judge_failed(judge):
    """What the runner says that with is in its frames, and closed."""
    code = """
import mmap, sys
frame, found, written = sys._getframe(), set(), 0
while frame:
    for value in vars(frame.f_locals["self"]).values() if "self" in frame.f_locals else ():
        if isinstance(value, (mmap.mmap, memoryview)):
            found.add(type(value).__name__)
            try: value[8:14] = b"failed"; written += 1
            except ValueError: pass
    frame = frame.f_back
print(*sorted(found), written)
raise SystemExit(1)
"""
    (verdict,) = judge(code, ("", "memoryview mmap 0"), scoring="taco-compat").verdicts
    assert verdict.verdict is Verdict.PASSED, verdict


ODD_TEXTS = {
    "functions within functions": ("f = " + "lambda: " * 1200 + "3\nprint(3)", Verdict.PASSED),
    "a sum of many terms": ("x = " + "+".join("1" * 5000) + "\nprint(3)", Verdict.COMPILE_ERROR),
    "a name of a million letters": (f"def f({'x' * 300_000}):\n global {'x' * 300_000}", Verdict.COMPILE_ERROR),
    "a lone surrogate in a text": ("x = '\\ud800'\nprint(3)", Verdict.PASSED),
    "an encoding that is none": ("# coding: nonsense\nprint(3)", Verdict.COMPILE_ERROR),
    "many warnings": ("1 is 1\n" * 1000 + "print(3)", Verdict.PASSED),
    "brackets": ("x = " + "[" * 5000, Verdict.COMPILE_ERROR),
}


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_odd_text_gets_the_verdict_that_is_its_own(judge_once, name):
    code, expected = ODD_TEXTS[name]
    answer = judge_once(code, ("", "3"), ("", "3"))
    assert answer.passed is (expected is Verdict.PASSED), answer
    assert answer.verdicts[0].verdict is expected


@pytest.mark.parametrize("kind", ["stdin", "function", "script"])
@pytest.mark.parametrize("letter", ["x", chr(0x4E00), chr(0x20000)])
def test_compile_error_is_one_however_long_its_message(judge_once, kind, letter):
    code = f"def f({letter * 400}):\n global {letter * 400}"
    answer = judge_once(code, ("1", "3"), kind=kind, fn_name="f" if kind == "function" else None)
    assert answer.verdicts[0].verdict is Verdict.COMPILE_ERROR, answer
    assert "SyntaxError: name" in answer.verdicts[0].detail
