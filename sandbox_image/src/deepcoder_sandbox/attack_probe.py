"""What a hostile program would try. Runs inside a runner, from its text; prints for each property whether it held.

Reads its bait from stdin, a line of JSON: a secret file, a file to damage, a listening port, pids to attack, numbers of
system calls that must be refused.

What scoring livecodebench puts in place of `open` and parts of `os` is no protection: it is bypassed first.
"""

import contextlib
import ctypes
import json
import os
import posix
import socket
import sys
from collections.abc import Callable
from io import open as open_file
from pathlib import Path
from typing import Any

for name, function in vars(posix).items():
    if getattr(os, name, function) is None:
        setattr(os, name, function)
bait = json.loads(sys.stdin.readline())
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def refused(attempt: Callable[..., Any], *arguments: Any) -> bool:
    """Return whether the attempt fails."""
    try:
        result = attempt(*arguments)
    except (OSError, PermissionError):
        return True
    if hasattr(result, "close"):
        with contextlib.suppress(OSError):
            result.close()
    return False


def call_refused(number: int, *arguments: Any) -> bool:
    """Return whether a raw system call fails for lack of permission, not for bad arguments."""
    return libc.syscall(number, *arguments) < 0 and ctypes.get_errno() in (1, 13, 38)


def connect() -> None:
    """Reach a listening port of this host."""
    with socket.socket() as client:
        client.connect(("127.0.0.1", bait["port"]))


def connect_abstract() -> None:
    """Reach a listening abstract Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(bait["abstract"])


def fork() -> None:
    """Start a process."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def write(path: str) -> None:
    """Make a file."""
    name = f"{path}/deepcoder-probe-{os.getpid()}"
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600))
    Path(name).unlink()


def descriptors() -> list[int]:
    """Return inherited descriptors beyond the runner's own."""
    return [fd for fd in range(bait["descriptors"], 1024) if not refused(os.fstat, fd)]


def spoiled() -> list[str]:
    """Return what could be done to a file that belongs to the judge's user, by path or through a descriptor."""
    path = Path(bait["victim"])
    attempts: dict[str, Callable[[], Any]] = {
        "chmod": lambda: path.chmod(0o600),
        "truncate": lambda: os.truncate(path, 0),
        "utime": lambda: os.utime(path, (1, 1)),
        "chown": lambda: os.chown(path, os.getuid(), os.getgid()),
        "setxattr": lambda: os.setxattr(path, "user.deepcoder", b"x"),
        "link": lambda: path.with_suffix(".link").hardlink_to(path),
        "symlink": lambda: path.with_suffix(".symlink").symlink_to(path),
        "rename": lambda: path.rename(path.with_suffix(".moved")),
        "unlink": lambda: path.unlink(),
        "write": lambda: os.open(path, os.O_WRONLY),
        "empty": lambda: os.open(path, os.O_RDONLY | os.O_TRUNC),
        "fchmod": lambda: os.fchmod(0, 0o600),
        "futimes": lambda: os.utime(0, (1, 1)),
    }
    return [name for name, attempt in attempts.items() if not refused(attempt)]


FILE_CHANGES = {
    True: (90, 91, 268, 452, 92, 93, 94, 260, 132, 235, 261, 280, 76, 188, 189, 190, 197, 198, 199, 133, 259, 88, 266),
    False: (52, 53, 452, 54, 55, 88, 45, 5, 6, 7, 14, 15, 16, 33, 36),
}
"""For x86_64 (True) or not: chmod, chown, utime, truncate, setxattr, removexattr, mknod and symlink, in every form."""

x86 = os.uname().machine == "x86_64"
calls: dict[str, tuple[Any, ...]] = {
    "io_uring": (425, 8, ctypes.create_string_buffer(120)),
    "execution": (59 if x86 else 221, b"/nonexistent", 0, 0),
    "ptrace": (101 if x86 else 117, 0x4206, bait["pids"][0], 0, 0),
    "process_memory": (310 if x86 else 270, bait["pids"][0], 0, 0, 0, 0, 0),
    "userfaultfd": (323 if x86 else 282, 0),
    "shared_memory": (29 if x86 else 194, 1, 4096, 0),
    "message_queues": (68 if x86 else 186, 1, 0),
    "keyrings": (250 if x86 else 219, 0, -3, 1),
    "bpf": (321 if x86 else 280, 0, 0, 0),
    "scheduling": (144 if x86 else 119, 0, 0, ctypes.create_string_buffer(8)),
    "perf_events": (298 if x86 else 241, 0, 0, -1, -1, 0),
    "new_namespaces": (272 if x86 else 97, 0x10000000),
    "mounts": (165 if x86 else 40, 0, 0, 0, 0, 0),
    "memory_files": (319 if x86 else 279, b"x", 0),
    "signal_timers": (222 if x86 else 107, 1, 0, 0),
    "deadly_limits": (302 if x86 else 261, 0, 15, (ctypes.c_uint64 * 2)(1 << 40, 1 << 40), 0),  # RLIMIT_RTTIME
    "pidfd": (434, bait["pids"][0], 0),
}
FCNTL, IOCTL, PRCTL = (72, 16, 157) if x86 else (25, 29, 167)
F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY = 8, 10, 15, 1024, 1026
F_SETLK, F_OFD_SETLK, F_SETPIPE_SZ = 6, 37, 1031
FIGETBSZ, PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_GET_SECCOMP, PR_GET_NO_NEW_PRIVS = 2, 3, 4, 21, 39
CAPGET, CAPABILITY_VERSION_3 = 125 if x86 else 90, 0x20080522
CLONE, OPENAT, PREADV2, MADVISE = (56, 257, 327, 28) if x86 else (220, 56, 286, 233)
WRITE_OUT = (74, 75, 26) if x86 else (82, 83, 227)
CLOSE_RANGE, CLOSE_RANGE_UNSHARE, CLONE_THREAD = 436, 2, 0x0001_0000
CLONE_THREAD_FILES_AND_VFORK, O_DIRECT, F_SETFL = 0x0001_4400, 0x4000 if x86 else 0x1_0000, 4
RWF_DONTCACHE, MADV_COLD, MADV_PAGEOUT, MADV_COLLAPSE = 0x80, 20, 21, 25
MMAP, MAP_SHARED_AND_ANONYMOUS = 9 if x86 else 222, (0x21, 0x23)
O_TRUNC, O_ACCMODE = 0x200, 3
FORK_AND_VFORK = (57, 58) if x86 else ()  # tried as "processes": they take no argument that would make them harmless

held = {name: call_refused(*arguments) for name, arguments in calls.items()}
held["other_calls"] = bool(bait["refused"]) and all(
    call_refused(number, -1, -1, -1, -1, -1, -1) for number in bait["refused"] if number not in FORK_AND_VFORK
)
held["shared_pages"] = refused(os.open, "/dev/zero", os.O_RDONLY) and all(  # of no bytes: EINVAL if not refused
    call_refused(MMAP, 0, 0, 0, flags, -1, 0) for flags in MAP_SHARED_AND_ANONYMOUS
)
held["descriptor_signals"] = all(
    call_refused(FCNTL, 0, command, 0) for command in (F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY)
)
held["descriptor_memory"] = all(call_refused(FCNTL, 1, command, 0) for command in (F_SETLK, F_OFD_SETLK, F_SETPIPE_SZ))
held["device_controls"] = libc.syscall(IOCTL, 0, FIGETBSZ, ctypes.byref(ctypes.c_int())) < 0
held["descriptor_tables"] = (  # a thread's own: the flags of clone are too few for one, EINVAL if not refused
    call_refused(CLOSE_RANGE, 1 << 20, 1 << 20, CLOSE_RANGE_UNSHARE) and call_refused(CLONE, CLONE_THREAD, 0, 0, 0, 0)
)
held["kernel_waits"] = (  # the flags are too few for a thread: EINVAL if not refused
    call_refused(CLONE, CLONE_THREAD_FILES_AND_VFORK, 0, 0, 0, 0)
    and libc.syscall(OPENAT, -100, os.__file__.encode(), O_DIRECT) < 0
    and libc.syscall(FCNTL, 0, F_SETFL, O_DIRECT) < 0
    and libc.syscall(PREADV2, 0, 0, 0, 0, 0, RWF_DONTCACHE) < 0
    and all(libc.syscall(MADVISE, 0, 0, advice) < 0 for advice in (MADV_COLD, MADV_PAGEOUT, MADV_COLLAPSE))
    and all(libc.syscall(number, -1, -1, -1) == 0 for number in WRITE_OUT)  # success, without doing anything
)
held["process_options"] = call_refused(PRCTL, PR_SET_DUMPABLE, 1, 0, 0, 0)
held["not_dumpable"] = libc.syscall(PRCTL, PR_GET_DUMPABLE, 0, 0, 0, 0) == 0
held["no_new_privileges"] = libc.syscall(PRCTL, PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1
held["system_call_filter"] = libc.syscall(PRCTL, PR_GET_SECCOMP, 0, 0, 0, 0) == 2
sets = (ctypes.c_uint32 * 6)()
told = libc.syscall(CAPGET, (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), sets)
held["capabilities"] = told == 0 and not any(sets)
if bait["namespaces"]:
    own = {name: str(Path(f"/proc/self/ns/{name}").readlink()) for name in bait["namespaces"]}
    held["namespaces"] = all(own[name] != link for name, link in bait["namespaces"].items())
held["network"] = refused(connect) and refused(connect_abstract) and refused(socket.socketpair)
held["processes"] = refused(fork)
held["signals"] = all(refused(os.kill, pid, 0) for pid in [*bait["pids"], os.getppid(), -1, 0])
held["secret_files"] = (
    refused(open_file, bait["secret"]) and refused(open_file, "/etc/passwd") and refused(open_file, "/etc/shadow")
)
held["host_files"] = all(refused(os.listdir, path) for path in ("/etc", "/root", "/home", "/var", *bait["hidden"]))
held["other_processes"] = all(
    refused(open_file, f"/proc/{pid}/{name}", "rb")
    for pid in [*bait["pids"], os.getppid()]
    for name in ("environ", "mem", "maps", "cmdline")
)
held["host_writes"] = all(
    refused(write, path) for path in ("/dev/" + "shm", "/var/" + "tmp", "/", "/run", *bait["directories"])
)
held["file_changes"] = (  # /dev/null may be written to, so Landlock lets it be emptied
    all(call_refused(number, 0, 0, 0, 0) for number in FILE_CHANGES[x86])
    and all(call_refused(OPENAT, -100, b"/dev/null", mode | O_TRUNC) for mode in (os.O_RDONLY, O_ACCMODE))
    and spoiled() == []
)
held["descriptors"] = descriptors() == []
held["environment"] = set(os.environ) <= {*bait["environment"], "LC_CTYPE"}  # which the interpreter sets itself
held["privileges"] = refused(os.chroot, "/") and refused(os.setuid, 0 if os.getuid() else 1)
sys.stdout.write(json.dumps(held))
