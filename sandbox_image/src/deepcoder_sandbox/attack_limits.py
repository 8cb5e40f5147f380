"""Programs that each exceed one limit, for the judge's attack on itself, and checks that the limit held.

Pure data; nothing here fails.
"""

from __future__ import annotations

import platform
import signal
from collections.abc import Callable

from deepcoder_sandbox.execution import Execution
from deepcoder_sandbox.limits import MIB
from deepcoder_sandbox.worker.packets import RunLimits


def bounds(cpu: float = 10.0, wall: float = 30.0, memory_mb: int = 256, file_bytes: int = MIB) -> RunLimits:
    """Return limits that are generous, except for the one under attack."""
    return RunLimits(cpu_limit_s=cpu, wall_limit_s=wall, memory_limit_mb=memory_mb, file_bytes=file_bytes)


ATTACKS: dict[str, tuple[str, RunLimits, Callable[[Execution], bool]]] = {
    "cpu_time": ("while True: pass", bounds(cpu=0.02), lambda run: run.ended.killed_for == "cpu"),
    "wall_time": (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(3600)",
        bounds(wall=0.15),
        lambda run: run.ended.killed_for == "wall",
    ),
    "memory": (
        "x = bytearray(512 << 20)\nx[::4096] = b'x' * len(x[::4096])\nprint('got it')",
        bounds(memory_mb=128),
        lambda run: b"got it" not in run.stdout,
    ),
    "output": (
        "for _ in range(64): print('x' * (1 << 16))\nprint('all written')",
        bounds(file_bytes=MIB),
        lambda run: run.written_bytes <= MIB and run.ended.exit_status != 0,
    ),
    "own_sigkill": (
        "import posix\nposix.kill(posix.getpid(), 9)",  # in scoring livecodebench, `os` has no kill
        bounds(),
        lambda run: run.ended.signal is None,
    ),
    "open_files": (
        "import os\nfor _ in range(1000): os.dup(0)\nprint('opened')",
        bounds(),
        lambda run: b"opened" not in run.stdout,
    ),
    "queued_signals": (
        "import signal\nnumber, waited = signal.SIGRTMIN, 0\nsignal.pthread_sigmask(signal.SIG_BLOCK, [number])\n"
        "try:\n    for _ in range(1000): signal.raise_signal(number)\nexcept OSError: pass\n"
        "while signal.sigtimedwait([number], 0): waited += 1\nprint(waited)",
        bounds(),
        lambda run: run.stdout.strip().isdigit() and int(run.stdout) < 100,
    ),
    "threads": (
        "import _thread, time\n_thread.stack_size(65536)\n"
        "for _ in range(600): _thread.start_new_thread(time.sleep, (60,))\nprint('made')",
        bounds(),
        lambda run: b"made" not in run.stdout and run.ended.killed_for is None,
    ),
    "compile_time": (
        "x = 1\n" * 100_000,
        bounds(cpu=0.02),
        lambda run: run.ended.killed_for == "cpu",
    ),
    "compile_memory": (
        "x = 1\n" * 16_000 + "print('compiled')",  # over twice what fits; more only takes longer to search
        bounds(memory_mb=12),
        lambda run: b"compiled" not in run.stdout and run.ended.signal != signal.SIGKILL,
    ),
}
"""For each property: the program that attacks it, the limits that it runs under, and a check that the property held."""

if platform.machine() == "x86_64":  # elsewhere a program cannot make calls of another architecture
    ATTACKS["foreign_calls"] = (
        "import ctypes, mmap\npage = mmap.mmap(-1, 4096, 0x22, 7)\npage.write(bytes.fromhex('b814000000cd80c3'))\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()",  # 32-bit getpid
        bounds(),
        lambda run: run.ended.signal == signal.SIGSYS,
    )

LEAVE = """
import json, posix, sys
for path in json.load(sys.stdin):
    try: posix.close(posix.open(path, posix.O_WRONLY | posix.O_CREAT, 0o600))
    except OSError: pass
"""
"""Uses descriptors, because an interpreter that has had a file object open for writing ends with a full teardown."""

FIND = """
import json, os, sys
json.dump([path for path in json.load(sys.stdin) if os.path.lexists(path)], sys.stdout)
"""
