"""Programs that cheat or attack, in both tiers. None gets a pass, none leaves anything behind, none harms the judge."""

import json
import socket
import time
from pathlib import Path

import pytest

from deepcoder_contracts.judge import Scoring, Tier, Verdict

SECRET = "expected-output-7391"

READ_MEMORY = """
import gc, sys
prefix = "expected-" + "output-"
texts = [t for t in gc.get_objects() if isinstance(t, (dict, list, tuple))]
frame = sys._getframe()
while frame:
    texts += list(frame.f_locals.values())
    frame = frame.f_back
for text in texts:
    try: shown = repr(text)
    except Exception: continue
    if prefix in shown: print(shown[shown.index(prefix):][:len(prefix) + 4])
"""

READ_FILES = """
import os
seen = []
for path in ["/proc/self/maps", "/proc/self/mem", "/proc/1/environ", f"/proc/{os.getppid()}/environ",
             "/etc/shadow",
             "/etc/passwd", "/root", "/proc/net/tcp", "/sys/kernel"]:
    try:
        os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(10)
        seen.append(path)
    except OSError: pass
print(seen or "nothing")
"""

INHERITED = """
import os
left = []
for fd in range(5, 256):
    try: os.fstat(fd); left.append(fd)
    except OSError: pass
print(left or "nothing")
"""

SOCKETS = """
import socket
made = []
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK):
    try: socket.socket(family); made.append(family)
    except OSError: pass
try: socket.socketpair(); made.append("pair")
except OSError: pass
print(made or "nothing")
"""

FORK_BOMB = """
import os, subprocess, multiprocessing
made = []
for attempt in (os.fork, os.forkpty, lambda: subprocess.run(["true"]),
                lambda: os.posix_spawn("/bin/true", ["true"], {}),
                lambda: os.execv("/bin/true", ["true"]), lambda: multiprocessing.Process(target=print).start()):
    try: attempt(); made.append(attempt)
    except OSError: pass
print(made or "nothing")
"""

SIGNALS = """
import ctypes, os, signal
sent = []
libc = ctypes.CDLL(None)
for pid in (os.getppid(), 1, -1, 0, -os.getpgrp()):
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
        try: os.kill(pid, number); sent.append(pid)
        except OSError: pass
for number in (9, 19):
    try: os.kill(os.getpid(), number); sent.append(number)
    except OSError: pass
try: signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9); sent.append("pidfd")
except OSError: pass
parent = os.getppid()
for call in ((101, 16, parent, 0, 0), (311, parent, 0, 0, 0, 0, 0), (129, parent, 9, 0), (200, parent, 9)):
    if libc.syscall(*call) >= 0: sent.append(call)
import fcntl
try: fcntl.fcntl(1, fcntl.F_SETOWN, os.getppid()); sent.append("F_SETOWN")
except OSError: pass
import resource
for attempt in (lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1)),
                lambda: resource.setrlimit(resource.RLIMIT_CPU, (1, 1)),
                lambda: resource.prlimit(0, resource.RLIMIT_CPU, (1, 1))):
    try: attempt(); sent.append("rlimit")
    except (OSError, ValueError): pass
print(sent or "nothing")
"""

WRITES = """
import os
made = []
for path in ("/", "/dev/shm", "/var/tmp", "/usr", "/root", os.path.dirname(os.__file__)):
    try: open(path + "/left-behind", "w"); made.append(path)
    except OSError: pass
for name in (os.__file__,):
    try: open(name, "a"); made.append(name)
    except OSError: pass
print(made or "nothing")
"""


ATTACKS = {
    "files": READ_FILES,
    "descriptors": INHERITED,
    "sockets": SOCKETS,
    "processes": FORK_BOMB,
    "signals": SIGNALS,
    "writes": WRITES,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_gets_nothing(judge, name):
    answer = judge(ATTACKS[name], ("", "nothing"))
    assert answer.passed is True, answer


SPOIL = """
import os
path, done = input(), []
attempts = {"chmod": lambda: os.chmod(path, 0o777), "truncate": lambda: os.truncate(path, 0),
            "utime": lambda: os.utime(path, (1, 1)), "chown": lambda: os.chown(path, os.getuid(), os.getgid()),
            "xattr": lambda: os.setxattr(path, "user.x", b"x"), "link": lambda: os.link(path, path + "2"),
            "rename": lambda: os.rename(path, path + "3"), "unlink": lambda: os.unlink(path),
            "open": lambda: os.open(path, os.O_WRONLY | os.O_TRUNC), "fchmod": lambda: os.fchmod(0, 0o777)}
for name, attempt in attempts.items():
    try: attempt(); done.append(name)
    except OSError: pass
print(done or "nothing")
"""


def test_file_of_the_judges_user_stays_as_it_is(judge, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    before = victim.stat()
    assert judge(SPOIL, (f"{victim}\n", "nothing")).passed is True
    assert victim.read_text() == "precious"
    after = victim.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink) == (before.st_mode, before.st_mtime_ns, 1)
    assert list(tmp_path.iterdir()) == [victim]


@pytest.mark.parametrize("scoring", Scoring)
def test_expected_output_is_nowhere_in_the_programs_memory(judge, scoring):
    answer = judge(READ_MEMORY, ("", SECRET), scoring=scoring)
    assert [verdict.verdict for verdict in answer.verdicts] == [Verdict.WRONG_ANSWER], answer


TIMER_OF_DEATH = """
import ctypes, os, time
libc, x86 = ctypes.CDLL(None), os.uname().machine == "x86_64"
event, timer = (ctypes.c_int * 16)(0, 0, 9, 0), ctypes.c_int()
libc.syscall(222 if x86 else 107, 1, event, ctypes.byref(timer))
libc.syscall(223 if x86 else 110, timer, 0, (ctypes.c_long * 4)(0, 0, 0, 1000), 0)
time.sleep(0.2)
"""

LIMIT_OF_DEATH = """
import ctypes, os, threading, time
libc, x86 = ctypes.CDLL(None), os.uname().machine == "x86_64"
libc.syscall(302 if x86 else 261, 0, 15, (ctypes.c_long * 2)(0, 0), 0)  # RLIMIT_RTTIME
threads = []
def burn():
    threads.append(threading.get_native_id())
    until = time.monotonic() + 0.2
    while time.monotonic() < until: pass
threading.Thread(target=burn, daemon=True).start()
while not threads: time.sleep(0.001)
its_clock, a_moment = (~threads[0] << 3) | 6, (ctypes.c_long * 2)(0, 5_000_000)
libc.syscall(230 if x86 else 115, its_clock, 0, a_moment, 0)  # has the kernel look at that thread's limits
time.sleep(0.2)
"""

FORGERIES = {
    "writes an answer to the report": "import os; os.write(3, b'{\"completed\": true}'); os.write(3, b'3')",
    "claims that the judge failed": 'import os; os.write(3, b\'{"failure": "error"}\'); os._exit(99)',
    "kills itself to look like an accident": "import os; os.kill(os.getpid(), 9)",
    "has a timer kill it": TIMER_OF_DEATH,
    "has a resource limit kill it": LIMIT_OF_DEATH,
    "leaves early with status 0": "import os; os._exit(0)",
    "patches the builtins that the runner uses": (
        "import builtins, os, json, sys\n"
        "builtins.compile = builtins.exec = lambda *a, **k: None\n"
        "json.dumps = lambda *a, **k: '{\"completed\": true}'\n"
        "os._exit = lambda status: None\nsys.exit(0)"
    ),
    "reports garbage": "import os; os.write(3, b'\\xff{' * 1000)",
    "reports a flood": "import os\nwhile True: os.write(3, b'x' * 65536)",
    "nests deeply": "import os; os.write(3, b'[' * 100000)",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgery_does_not_pass_and_is_not_the_judges_error(judge, name):
    for kind, fn_name in (("stdin", None), ("function", "f")):
        for scoring in ("strict", "livecodebench"):
            given = "" if scoring == "strict" else "0"
            answer = judge(FORGERIES[name], (given, f'"{SECRET}"'), kind=kind, fn_name=fn_name, scoring=scoring)
            assert answer.passed is False, answer


SEALS = """
import fcntl
F_ADD_SEALS, EVERY_SEAL = 1033, 31
for descriptor in range(8):
    if descriptor != {spared}:
        try: fcntl.fcntl(descriptor, F_ADD_SEALS, EVERY_SEAL)
        except OSError: pass
print(input())
"""


@pytest.mark.parametrize("scoring", ["strict", "livecodebench"])
@pytest.mark.parametrize("spared", [-1, 6])
def test_program_cannot_seal_the_files_that_the_judge_writes(judge, scoring, spared):
    long = "2" * 9000  # which a session's program is given in a file
    answer = judge(SEALS.format(spared=spared), ("1", "1"), (long, long), scoring=scoring)
    assert answer.passed is True, answer


def test_answers_ahead_of_the_questions_do_not_block_the_judge(judge):
    code = "import os, time\nfor _ in range(2000): os.write(3, b'{\"bytes\": 0}')\ntime.sleep(6000)"
    answer = judge(code, *[("", "")] * 2000, scoring="livecodebench", time_limit_s=2)  # all may take 1600 s
    assert answer.passed is False


ALWAYS_EQUAL = """
class Yes(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
class YesList(list):
    def __eq__(self, other): return True
"""


@pytest.mark.parametrize("scoring", Scoring)
@pytest.mark.parametrize(
    "returned", ["Yes()", "YesList()", "[Yes()]", "(Yes(),)", "{'a': Yes()}", "type('Y', (), {})()"]
)
def test_value_that_equals_everything_is_wrong(judge_once, scoring, returned):
    code = f"{ALWAYS_EQUAL}\ndef f(): return {returned}"
    answer = judge_once(
        code, ('""' if scoring != "livecodebench" else "0", "[17]"), kind="function", fn_name="f", scoring=scoring
    )
    assert answer.passed is False


def test_livecodebench_session_cannot_be_forged_over_its_control_socket(judge):
    code = "import os, json\nfor _ in range(9): os.write(3, json.dumps({'bytes': 0, 'seconds': 0}).encode())"
    answer = judge(code, ("", "17"), scoring="livecodebench")
    assert answer.passed is False


@pytest.mark.parametrize(
    "text", ["b'garbage'", "b'[' * 4000", "b'{\"bytes\": 1e999}'", "b'{\"prepared\": true}'", "b''"]
)
def test_livecodebench_session_survives_nonsense(judge, text):
    answer = judge(f"import os\nos.write(3, {text})", ("", "17"), scoring="livecodebench")
    assert answer.passed is False


def test_bomb_of_threads_is_bounded_and_harms_no_later_program(judge):
    code = (
        "import threading, time\nthreading.stack_size(65536)\nmade = 0\ntry:\n    for _ in range(20000):\n"
        "        threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); made += 1\n"
        "except (RuntimeError, MemoryError): pass\nprint(1 < made < 20000)"
    )
    bomb = judge(code, ("", "True"), time_limit_s=1, memory_limit_mb=256).verdicts[0].verdict
    assert bomb in (Verdict.PASSED, Verdict.TIME_LIMIT)
    honest = "import threading\nt = threading.Thread(target=print, args=(1,))\nt.start(); t.join()"
    assert judge(honest, ("", "1")).passed is True


def test_program_that_ignores_every_signal_is_ended(judge):
    code = "import signal\nfor n in (1, 2, 15, 24, 25):\n    signal.signal(n, signal.SIG_IGN)\nwhile True: pass"
    assert judge(code, ("", ""), time_limit_s=0.2).verdicts[0].verdict is Verdict.TIME_LIMIT


@pytest.mark.parametrize("descriptor", [1, 2])
def test_output_flood_with_its_signal_ignored_is_an_output_limit(judge, descriptor):
    code = (
        "import os, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"try:\n    while True: os.write({descriptor}, b'x' * 65536)\nexcept OSError: pass"
    )
    assert judge(code, ("", "x")).verdicts[0].verdict is Verdict.OUTPUT_LIMIT


def test_slow_trickle_of_cpu_across_threads_counts_in_full(judge):
    code = (
        "import threading, hashlib\n"
        "def burn():\n    while True: hashlib.pbkdf2_hmac('sha256', b'x', b'y', 100000)\n"
        "for _ in range(3): threading.Thread(target=burn).start()"
    )
    assert judge(code, ("", ""), time_limit_s=0.3).verdicts[0].verdict is Verdict.TIME_LIMIT


def test_next_program_finds_nothing_of_the_one_before(judge):
    leave = (
        "import os, tempfile, threading, time\n"
        "try:\n    open('left', 'w').write('left-' + 'over-4711'); os.makedirs('deep/er')\nexcept OSError: pass\n"
        "marker = 'left-' + 'over-4711'\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nprint(input())"
    )
    assert judge(leave, ("input-of-another-4711", "input-of-another-4711")).passed is True
    look = (
        "import gc, os\n"
        "found = [path for path in ('left', 'deep', '/tmp/left') if os.path.exists(path)]\n"
        "needle = 'over-' + '4711'\n"
        "shown = [repr(t)[:99999] for t in gc.get_objects() if isinstance(t, (dict, list)) and t is not found]\n"
        "found += [t for t in shown if needle in t and 'needle' not in t]\n"
        "print(found or 'nothing')"
    )
    assert judge(look, ("", "nothing")).passed is True


def test_scratch_directory_is_capped_in_the_namespaces_tier(slot, judge):
    if slot.ensure_zygote().config.tier is not Tier.NAMESPACES:
        pytest.skip("the Landlock tier has no scratch directory")
    code = (
        "import os\nwritten = 0\ntry:\n    for n in range(1000):\n"
        "        with open(f'{n}', 'wb') as f: written += f.write(b'x' * (1 << 20))\n"
        "except OSError as e: print(e.errno, written <= 64 << 20)"
    )
    assert judge(code, ("", "28 True"), output_bytes=8 << 20).passed is True
    assert judge("import os; print(os.listdir('.'))", ("", "[]")).passed is True


def test_zygote_that_cannot_clean_up_is_replaced(slot, judge):
    if slot.ensure_zygote().config.tier is not Tier.NAMESPACES:
        pytest.skip("the Landlock tier has no scratch directory")
    code = "import os\nfor _ in range(3000):\n    os.mkdir('d'); os.chdir('d')\nprint(1)"
    before = slot.ensure_zygote().pid
    assert judge(code, ("", "1")).passed is True
    assert judge("import os; print(os.listdir('/tmp'))", ("", "[]")).passed is True
    assert slot.ensure_zygote().pid == before or slot.ensure_zygote().runs <= 1


def test_no_descriptor_and_no_process_is_left_in_the_judge(slot, judge):
    for scoring in ("strict", "livecodebench"):  # each with a zygote of its own, which stays
        judge("print(1)", ("", "1"), scoring=scoring)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for code in ("print(1)", "while True: pass", "import os; os._exit(1)", "x = ("):
        judge(code, ("", "1"), time_limit_s=0.1)
        judge(code, ("", "1"), time_limit_s=0.1, scoring="livecodebench")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    zygote = slot.ensure_zygote().pid
    inside = Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split()
    if slot.ensure_zygote().config.tier is Tier.NAMESPACES:
        inside = Path(f"/proc/{inside[0]}/task/{inside[0]}/children").read_text().split()
    assert inside == []


def test_landlock_alone_keeps_a_listening_socket_out_of_reach(judge):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        answer = judge(f"import socket; socket.create_connection(('127.0.0.1', {port}))", ("", ""))
        assert answer.verdicts[0].verdict is Verdict.RUNTIME_ERROR


def test_colliding_integer_keys_do_not_stall_the_comparison(judge_once):
    code = "def f(): return {(2**61 - 1) * k: 0 for k in range(1, 2000)}"
    started = time.monotonic()
    answer = judge_once(code, ("", json.dumps({"a": 1})), kind="function", fn_name="f", time_limit_s=10)
    assert answer.passed is False
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("scoring", Scoring)
@pytest.mark.parametrize("returned", ["Decimal('sNaN')", "[Decimal('sNaN')]", "Decimal('1e999999999999999999')"])
def test_number_that_cannot_be_compared_is_wrong_and_not_the_judges_error(judge_once, scoring, returned):
    code = f"from decimal import Decimal\ndef f(n): return {returned}"
    for expected in ("1", "[1]"):
        answer = judge_once(code, ("1", expected), kind="function", fn_name="f", scoring=scoring)
        assert answer.passed is False, answer


@pytest.mark.parametrize("scoring", Scoring)
def test_value_nested_as_deep_as_admission_lets_through_is_compared(judge_once, scoring):
    for deep in ("[" * 200 + "]" * 200, '{"a":' * 200 + "1" + "}" * 200):
        answer = judge_once("def f(x): return x", (deep, deep), kind="function", fn_name="f", scoring=scoring)
        assert answer.passed is True, answer
    shallow = judge_once("def f(x): return x", ("1", "1"), kind="function", fn_name="f", scoring=scoring)
    assert shallow.passed is True
