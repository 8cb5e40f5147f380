"""What a program may reach beside itself, in both tiers: other programs, the kernel's doors, the test after this one.

Whether something was left behind is looked up from outside the program as well: processes, descriptors, files, System V
and POSIX objects, keys.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from judge_harness import OwnSlot, Served, in_every_slot

from deepcoder_contracts.judge import Verdict
from deepcoder_sandbox.slot import Slot

CALLS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
x86 = os.uname().machine == "x86_64"
REFUSED = (1, 13, 38)  # EPERM, EACCES, ENOSYS

def tried(on_x86_64, on_aarch64, *arguments):
    number = on_x86_64 if x86 else on_aarch64
    ctypes.set_errno(0)
    return number is not None and (libc.syscall(number, *arguments) >= 0 or ctypes.get_errno() not in REFUSED)
"""

DOORS = {
    "io_uring": (425, 425, 8, "room"),
    "userfaultfd": (323, 282, 1),
    "memfd_create": (319, 279, b"x", 0),
    "memfd_secret": (447, 447, 0),
    "ptrace": (101, 117, 0, 0, 0, 0),
    "perf_event_open": (298, 241, "room", 0, -1, -1, 0),
    "bpf": (321, 280, 0, "room", 64),
    "add_key": (248, 217, b"user", b"left", b"behind", 6, -3),
    "keyctl": (250, 219, 0, -3, 1),
    "shmget": (29, 194, 4711, 4096, 0o1600),
    "semget": (64, 190, 4711, 1, 0o1600),
    "msgget": (68, 186, 4711, 0o1600),
    "mq_open": (240, 180, b"left", 0o102, 0o600, 0),
    "splice": (275, 76, 0, 0, 1, 0, 1, 0),
    "tee": (276, 77, 0, 1, 1, 0),
    "vmsplice": (278, 75, 1, "room", 1, 0),
    "socket": (41, 198, 1, 1, 0),
    "socketpair": (53, 199, 1, 1, 0, "room"),
    "sendmsg": (46, 211, 3, "room", 0),
    "recvmsg": (47, 212, 3, "room", 0),
    "sched_setaffinity": (203, 122, 0, 128, "room"),
    "sched_setscheduler": (144, 119, 0, 0, "room"),
    "sched_setattr": (314, 274, 0, "room", 0),
    "setpriority": (141, 140, 0, 0, 0),
    "ioprio_set": (251, 30, 1, 0, 0),
    "personality": (135, 92, 0x0400000),
    "modify_ldt": (154, None, 0, "room", 16),
    "arch_prctl": (158, None, 0x1004, "room"),
    "membarrier": (324, 283, 0, 0, 0),
    "mlock": (149, 228, "room", 4096),
    "move_pages": (279, 239, 0, 0, 0, 0, 0, 0),
    "process_madvise": (440, 440, 0, 0, 0, 0, 0),
    "mount": (165, 40, b"none", b"/tmp", b"tmpfs", 0, 0),
    "open_tree": (428, 428, -100, b"/", 1),
    "fsopen": (430, 430, b"tmpfs", 0),
    "move_mount": (429, 429, -100, b"/", -100, b"/", 0),
    "unshare": (272, 97, 0x10000000),
    "setns": (308, 268, 0, 0),
    "chroot": (161, 51, b"/"),
    "pivot_root": (155, 41, b"/", b"/"),
    "landlock": (444, 444, 0, 0, 1),
    "seccomp": (317, 277, 1, 0, "room"),
    "execveat": (322, 281, -1, b"/bin/true", 0, 0, 0),
    "vfork": (58, None),
    "setsid": (112, 157),
    "setpgid": (109, 154, 0, 0),
    "setresuid": (117, 147, -1, -1, -1),
    "setgroups": (116, 159, 0, 0),
    "capset": (126, 91, "room", 0),
    "sethostname": (170, 161, b"x", 1),
    "inotify_init1": (294, 26, 0),
    "fanotify_init": (300, 262, 0, 0),
    "signalfd": (289, 74, -1, "room", 8, 0),
    "timerfd_create": (283, 85, 1, 0),
    "name_to_handle_at": (303, 264, -100, b"/", "room", "room", 0),
    "open_by_handle_at": (304, 265, -100, "room", 0),
    "syslog": (103, 116, 3, "room", 64),
    "clock_settime": (227, 112, 0, "room"),
    "reboot": (169, 142, 0, 0, 0, 0),
    "openat2": (437, 437, -100, b"/", "room", 24),
    "x32": (0x40000027, None),
}
"""Calls with arguments that would do something: name to number on x86_64, on aarch64, arguments ("room": zeroes)."""


def test_doors_into_the_kernel_are_shut(judge):
    code = f"""{CALLS}
room = ctypes.create_string_buffer(4096)
doors = {DOORS!r}
given = {{name: [room if a == "room" else a for a in call[2:]] for name, call in doors.items()}}
print([name for name, call in doors.items() if tried(*call[:2], *given[name])])
"""
    assert judge(code, ("", "[]")).passed is True


def test_calls_of_another_architecture_end_the_program_and_are_its_own_doing(judge):
    if os.uname().machine != "x86_64":
        pytest.skip("only x86_64 has calls of another architecture that a program could make")
    code = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
page.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")  # getpid through int 0x80
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
print("survived")
"""
    answer = judge(code, ("", "survived"))
    assert answer.verdicts[0].verdict is Verdict.RUNTIME_ERROR, answer
    assert "SIGSYS" in (answer.verdicts[0].detail or "")


STRIKE = """
others, reached = [], []
own = os.getpid()
for pid in [*range(1, 400), *range(max(400, own - 400), own + 400)]:
    if pid == own or not os.path.exists(f"/proc/{pid}"): continue
    others.append(pid)
    for name in ("environ", "mem", "maps", "cmdline", "status", "stat", "fd/0", "fd/3", "cwd/x", "root/etc/passwd"):
        try: open(f"/proc/{pid}/{name}", "rb").read(1); reached.append(name)
        except OSError: pass
    for name in ("exe", "cwd", "root", "fd/0", "ns/net"):
        try: os.readlink(f"/proc/{pid}/{name}"); reached.append("link " + name)
        except OSError: pass
    word = ctypes.create_string_buffer(64)
    piece = (ctypes.c_void_p * 2)(ctypes.addressof(word), 8)
    for name, call in {
        "signal": (62, 129, pid, 15), "nothing": (62, 129, pid, 0), "group": (62, 129, -pid, 15),
        "thread": (234, 131, pid, pid, 15), "queued": (129, 138, pid, 15, word), "pidfd": (434, 434, pid, 0),
        "attach": (101, 117, 16, pid, 0, 0), "seize": (101, 117, 0x4206, pid, 0, 0),
        "read": (310, 270, pid, piece, 1, piece, 1, 0), "write": (311, 271, pid, piece, 1, piece, 1, 0),
        "limits": (302, 261, pid, 7, word, 0), "kcmp": (312, 272, own, pid, 0, 0, 0),
        "futexes": (274, 100, pid, word, word), "processor": (203, 122, pid, 8, word), "nice": (141, 140, 0, pid, 19),
    }.items():
        if tried(*call): reached.append(name)
print(sorted(set(reached)) or "nothing")
"""


def test_program_reaches_no_other_process_not_even_its_neighbours(slot, judging, judge, make):
    neighbour = judging if judging.slots > 1 else OwnSlot(Slot(slot.ensure_zygote().config, "neighbour"))
    victim = make("import time\nsecret = input()\ntime.sleep(1.5)\nprint(secret)", ("kept", "kept"))
    answers = []
    thread = threading.Thread(target=lambda: answers.append(neighbour.judge(victim, 1 << 20)))
    thread.start()
    time.sleep(0.6)
    answer = judge(CALLS + STRIKE, ("", "nothing"), time_limit_s=10)
    thread.join()
    assert answer.passed is True, answer
    assert [each.passed for each in answers] == [True]
    if isinstance(neighbour, OwnSlot) and neighbour is not judging:
        neighbour.close()


WORD = "carried_over_"
SEARCH = f"""
import ctypes, gc, os, time
libc = ctypes.CDLL(None, use_errno=True)
word = "{WORD}"[:-1].encode() + b"_"
pages, found = set(), set()
for thing in gc.get_objects():
    pages.add(id(thing) >> 20)
    for part in gc.get_referents(thing): pages.add(id(part) >> 20)
top = libc.sbrk
top.restype = ctypes.c_void_p
end = top(0)
pages.update(range((end - (64 << 20)) >> 20, (end >> 20) + 1))
reading, writing = os.pipe()
for page in sorted(pages):
    for address in range(page << 20, (page + 1) << 20, 4096):
        if libc.write(writing, ctypes.c_void_p(address), 4096) != 4096: continue  # not mapped: no signal, an error
        text = os.read(reading, 4096)
        at = text.find(word)
        while at >= 0:
            tail = text[at + len(word):at + len(word) + 4]
            if tail.isdigit(): found.add(tail.decode())
            at = text.find(word, at + 1)
time.sleep(0.3)
print(sorted(found) or "nothing")
"""


@pytest.mark.parametrize("scoring", ["strict", "livecodebench"])
def test_memory_of_a_program_holds_nothing_of_the_one_before(judging, make, scoring):
    before = make(
        f"import time\nx = '{WORD}4001' * 3\ntime.sleep(0.3)\nprint(input())",
        (f"{WORD}4002", f"{WORD}4003"),
        scoring=scoring,
    )
    assert [each.passed for each in in_every_slot(judging, before)] == [False] * 2 * judging.slots
    after = in_every_slot(judging, make(SEARCH, ("", "nothing"), scoring=scoring, time_limit_s=20))
    assert [each.passed for each in after] == [True] * 2 * judging.slots, after


def test_name_of_a_function_does_not_reach_the_next_program(judging, make):
    name = f"{WORD}4005"
    before = make(
        f"import time\ndef {name}(x):\n    time.sleep(0.3)\n    return x", ("1", "1"), kind="function", fn_name=name
    )
    assert [each.passed for each in in_every_slot(judging, before)] == [True] * 2 * judging.slots
    after = in_every_slot(judging, make(SEARCH, ("", "nothing"), time_limit_s=20))
    assert [each.passed for each in after] == [True] * 2 * judging.slots, after


def test_search_of_the_memory_finds_what_is_there(judge):
    assert judge(f"x = ('{WORD}' + str(4000 + 711)) * 2\n{SEARCH}", ("", "['4711']"), time_limit_s=20).passed is True


LANDLOCK_ALONE = """
import os, socket, sys
from deepcoder_sandbox.worker import landlock, libc
port, abstract, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
abi, done = libc.landlock_abi(), []
libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
assert libc.bare_syscall(libc.SYS_LANDLOCK_RESTRICT_SELF, landlock.build_ruleset([("/", landlock.READ)]), 0) == 0
def connect(): socket.create_connection(("127.0.0.1", port))
def listen(): socket.create_server(("127.0.0.1", 0))
def reach(): socket.socket(socket.AF_UNIX).connect("\\0" + abstract)
for since, name, attempt in [
    (1, "write", lambda: open(f"{folder}/file", "a")), (1, "make", lambda: os.mkdir(f"{folder}/new")),
    (1, "remove", lambda: os.unlink(f"{folder}/file")), (3, "truncate", lambda: os.truncate(f"{folder}/file", 0)),
    (1, "special", lambda: os.mkfifo(f"{folder}/fifo")), (1, "symlink", lambda: os.symlink("file", f"{folder}/link")),
    (4, "connect", connect), (4, "listen", listen), (6, "abstract", reach),
    (6, "signal", lambda: os.kill(os.getppid(), 0)),
]:
    try: attempt(); done += [name] if abi >= since else []
    except OSError: pass
print(*done)
"""


def test_landlock_alone_keeps_files_connections_and_other_processes_out_of_reach(tmp_path):
    (tmp_path / "file").write_text("precious")
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        name = f"deepcoder-test-{os.getpid()}"
        unix.bind(f"\0{name}")
        unix.listen()
        command = [sys.executable, "-c", LANDLOCK_ALONE, str(tcp.getsockname()[1]), name, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "precious")]


POISON = """
import builtins, os, signal, sys, threading, time
seen = []
names = ("heapq.py", "sitecustomize.py", "usercustomize.py", "main.py", "left", ".hidden")
folders = (".", "/tmp", "/", "/dev/shm")
paths = [os.path.join(folder, name) for name in names for folder in folders]
seen += [path for path in paths if os.path.lexists(path)]
for path in [*paths, *(os.path.join(folder, name) for name in names for folder in sys.path)]:
    try:
        with open(path, "x") as file: file.write("raise SystemExit('poisoned')")
    except OSError: pass
import heapq
if hasattr(builtins, "poisoned") or "POISONED" in os.environ or "" in sys.path[:1] : seen.append("state")
if signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL: seen.append("handler")
if signal.getitimer(signal.ITIMER_REAL)[0]: seen.append("timer")
if threading.active_count() > 1 or sys.gettrace() or os.umask(0o77) == 0o77: seen.append("process")
for fd in range(64):
    try: os.truncate(f"/proc/self/fd/{fd}", 0)
    except OSError: pass
    for mode in (os.O_WRONLY, os.O_RDWR | os.O_TRUNC):
        if fd == 1: continue
        try: again = os.open(f"/proc/self/fd/{fd}", mode)
        except OSError: continue
        try: os.pwrite(again, b"poison", os.fstat(again).st_size - 6 if os.fstat(again).st_size > 6 else 0)
        except OSError: pass
        os.close(again)
builtins.poisoned = os.environ["POISONED"] = "1"
sys.path.insert(0, "")
sys.settrace(lambda *_: None)
signal.signal(signal.SIGALRM, lambda *_: None); signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
sys.stdout.write(repr(seen) + chr(10)); sys.stdout.flush(); os._exit(0)
"""


def test_one_test_cannot_poison_the_next_of_the_same_submission(judge):
    answer = judge(POISON, *[("some input", "[]")] * 3, stop_on_first_failure=False)
    assert [verdict.verdict for verdict in answer.verdicts] == [Verdict.PASSED] * 3, answer


LEAVE = """
import ctypes, os, tempfile, threading, time
libc = ctypes.CDLL(None)
for path in ("left", "/tmp/left", "/dev/shm/left", "/var/tmp/left", "/dev/mqueue/left"):
    try: open(path, "w").write("x" * 100000)
    except OSError: pass
libc.syscall(29, 4712, 1 << 20, 0o1600); libc.syscall(248, b"user", b"left", b"behind", 6, -4)
libc.shm_open(b"/left", 0o102, 0o600)
pipes = [os.pipe() for _ in range(8)]
for _ in range(3): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
try: os.fork()
except OSError: pass
time.sleep(0.2)
{ending}
"""
ENDINGS = ("", "os._exit(3)", "os.kill(os.getpid(), 11)", "while True: pass", "os.abort()", "x = bytearray(1 << 40)")
FOLDERS = ("/tmp", "/dev/shm", "/var/tmp", "/dev/mqueue")


def what_is_there():
    """What programs might leave: named objects of the kernel, and files where anybody may write."""
    found = {}
    for name in ("shm", "sem", "msg"):
        rows = Path(f"/proc/sysvipc/{name}").read_text().splitlines()[1:]
        found[name] = sorted(row.split()[0] for row in rows)
    found["keys"] = sorted(line.split()[0] for line in Path("/proc/keys").read_text().splitlines() if "left" in line)
    for folder in FOLDERS:
        if Path(folder).is_dir():
            found[folder] = sorted(str(path) for path in Path(folder).iterdir() if "left" in path.name)
    return found


def processes(judging, count=None):
    """Those below the server when nothing is judged; waits a moment for a zygote that is being replaced."""
    until = time.monotonic() + 20
    while True:
        found = judging.processes()
        quiet = all(process.state != "Z" for process in found) and count in (None, len(found))
        if quiet or time.monotonic() > until:
            return found
        time.sleep(0.2)


@pytest.mark.parametrize("scoring", ["strict", "livecodebench"])
def test_nothing_is_left_behind_however_a_program_ends(judging, make, scoring):
    for slot in in_every_slot(judging, make("import time\ntime.sleep(0.3)\nprint(1)", ("", "1"), scoring=scoring)):
        assert slot.passed is True
    before, objects = len(processes(judging)), what_is_there()
    descriptors = judging.open_descriptors()
    for ending in ENDINGS:
        answers = in_every_slot(judging, make(LEAVE.format(ending=ending), ("", ""), scoring=scoring, time_limit_s=0.5))
        assert None not in [each.passed for each in answers], answers
    found = processes(judging, before)
    assert [process for process in found if process.state == "Z"] == []
    assert len(found) == before, found
    assert what_is_there() == objects
    assert judging.open_descriptors() == descriptors


def served_in_a_pod(judging):
    if not isinstance(judging, Served):
        pytest.skip("about a server beside the tests, in a pod: elsewhere orphans are init's, and root sees everything")


def test_server_keeps_its_memory_and_descriptors_from_all_others_of_its_user(judging):
    served_in_a_pod(judging)
    processes = [process.pid for process in judging.processes()]
    assert len(processes) > judging.slots
    for pid in processes:
        for name in ("mem", "environ", "maps"):
            with pytest.raises(PermissionError):
                Path(f"/proc/{pid}/{name}").read_bytes()
        with pytest.raises(PermissionError):
            list(Path(f"/proc/{pid}/fd").iterdir())


def test_runner_whose_zygote_is_killed_is_not_left_behind(judging, make):
    served_in_a_pod(judging)
    before = len(processes(judging))
    answers = []
    sleeper = make("import time\ntime.sleep(1.5)\nprint(1)", ("", "1"))
    thread = threading.Thread(target=lambda: answers.append(judging.judge(sleeper, 1 << 20)))
    thread.start()
    time.sleep(0.7)
    found = {process.pid: process for process in judging.processes()}
    ended = [process for process in found.values() if process.pid not in {each.parent for each in found.values()}]
    runner = max(ended, key=lambda process: process.pid)
    os.kill(runner.parent, signal.SIGKILL)
    thread.join()
    assert [answer.passed for answer in answers] == [True]
    left = processes(judging, before)
    assert [process for process in left if process.state == "Z" or process.pid == runner.pid] == []
    assert len(left) == before, left
