"""The system calls that a program may make, for x86_64 and aarch64, and the attack that tries each kind.

It is an allowlist of what a computing Python needs, including threads and a scratch directory (if there is one).
Everything else (sockets, io_uring, ptrace, mounts, keys, System V and POSIX IPC, POSIX timers, executing another
program…) is refused. Also refused are calls on paths that Landlock does not govern (modes, owners, times, attributes),
or governs only in newer kernels (truncate), because a program that runs as its judge's user could use them to change
that user's files. Raises `UnsupportedMachine` on other machines, so that no filter is built from the wrong table.
"""

from __future__ import annotations

import os
from typing import NamedTuple


class Group(NamedTuple):
    """Calls allowed for one purpose, and what keeps a program from misusing them."""

    attacked_as: tuple[str, ...]
    """Properties that the judge attacks at its start, with these calls or with related ones."""

    calls: dict[str, tuple[int | None, int | None]]
    """Name to (x86_64, aarch64) number; None where that machine has no such call."""


GROUPS: dict[str, Group] = {
    "memory": Group(
        ("memory", "shared_pages", "kernel_waits"),
        {
            "brk": (12, 214),
            "mmap": (9, 222),
            "mprotect": (10, 226),
            "munmap": (11, 215),
            "mremap": (25, 216),
            "madvise": (28, 233),
            "msync": (26, 227),
        },
    ),
    "input and output": Group(
        ("output", "descriptors", "descriptor_tables", "kernel_waits"),
        {
            "read": (0, 63),
            "write": (1, 64),
            "readv": (19, 65),
            "writev": (20, 66),
            "pread64": (17, 67),
            "pwrite64": (18, 68),
            "preadv": (295, 69),
            "pwritev": (296, 70),
            "preadv2": (327, 286),
            "pwritev2": (328, 287),
            "sendfile": (40, 71),
            "copy_file_range": (326, 285),
            "lseek": (8, 62),
            "close": (3, 57),
            "close_range": (436, 436),
            "fsync": (74, 82),
            "fdatasync": (75, 83),
        },
    ),
    "reading files": Group(
        ("secret_files", "host_files", "other_processes", "kernel_waits"),
        {
            "open": (2, None),
            "openat": (257, 56),
            "stat": (4, None),
            "lstat": (6, None),
            "fstat": (5, 80),
            "newfstatat": (262, 79),
            "statx": (332, 291),
            "statfs": (137, 43),
            "fstatfs": (138, 44),
            "access": (21, None),
            "faccessat": (269, 48),
            "faccessat2": (439, 439),
            "readlink": (89, None),
            "readlinkat": (267, 78),
            "getdents": (78, None),
            "getdents64": (217, 61),
            "getcwd": (79, 17),
            "chdir": (80, 49),
            "fchdir": (81, 50),
        },
    ),
    "changing files": Group(
        ("host_writes", "file_changes"),
        {
            "creat": (85, None),
            "mkdir": (83, None),
            "mkdirat": (258, 34),
            "rmdir": (84, None),
            "unlink": (87, None),
            "unlinkat": (263, 35),
            "rename": (82, None),
            "renameat": (264, 38),
            "renameat2": (316, 276),
            "link": (86, None),
            "linkat": (265, 37),
            "ftruncate": (77, 46),
            "fallocate": (285, 47),
            "umask": (95, 166),
        },
    ),
    "descriptors": Group(
        ("open_files", "descriptor_signals", "descriptor_memory", "device_controls", "kernel_waits"),
        {
            "dup": (32, 23),
            "dup2": (33, None),
            "dup3": (292, 24),
            "pipe": (22, None),
            "pipe2": (293, 59),
            "fcntl": (72, 25),
            "ioctl": (16, 29),
            "eventfd2": (290, 19),
            "epoll_create": (213, None),
            "epoll_create1": (291, 20),
            "epoll_ctl": (233, 21),
        },
    ),
    "signals": Group(
        ("signals", "own_sigkill", "signal_timers", "queued_signals"),
        {
            "kill": (62, 129),
            "tgkill": (234, 131),
            "rt_sigaction": (13, 134),
            "rt_sigprocmask": (14, 135),
            "rt_sigreturn": (15, 139),
            "rt_sigpending": (127, 136),
            "rt_sigsuspend": (130, 133),
            "rt_sigtimedwait": (128, 137),
            "sigaltstack": (131, 132),
            "restart_syscall": (219, 128),
            "getitimer": (36, 102),
            "setitimer": (38, 103),
            "alarm": (37, None),
        },
    ),
    "waiting": Group(
        ("wall_time",),
        {
            "pause": (34, None),
            "select": (23, None),
            "pselect6": (270, 72),
            "poll": (7, None),
            "ppoll": (271, 73),
            "epoll_wait": (232, None),
            "epoll_pwait": (281, 22),
            "nanosleep": (35, 101),
            "clock_nanosleep": (230, 115),
            "wait4": (61, 260),
            "waitid": (247, 95),
            "sched_yield": (24, 124),
        },
    ),
    "threads": Group(
        ("processes", "new_namespaces", "threads", "descriptor_tables", "kernel_waits"),
        {
            "clone": (56, 220),
            "clone3": (435, 435),
            "futex": (202, 98),
            "set_robust_list": (273, 99),
            "rseq": (334, 293),
            "set_tid_address": (218, 96),
            "exit": (60, 93),
            "exit_group": (231, 94),
        },
    ),
    "limits": Group(
        ("cpu_time", "deadly_limits", "process_options", "not_dumpable"),
        {
            "getrlimit": (97, 163),
            "prlimit64": (302, 261),
            "getrusage": (98, 165),
            "prctl": (157, 167),
        },
    ),
    "what the process is told": Group(
        ("privileges", "environment", "capabilities"),
        {
            "getpid": (39, 172),
            "getppid": (110, 173),
            "gettid": (186, 178),
            "getuid": (102, 174),
            "geteuid": (107, 175),
            "getgid": (104, 176),
            "getegid": (108, 177),
            "getgroups": (115, 158),
            "getresuid": (118, 148),
            "getresgid": (120, 150),
            "getpgid": (121, 155),
            "getpgrp": (111, None),
            "getsid": (124, 156),
            "getpriority": (140, 141),
            "capget": (125, 90),
            "sysinfo": (99, 179),
            "uname": (63, 160),
            "getrandom": (318, 278),
            "getcpu": (309, 168),
            "sched_getaffinity": (204, 123),
            "sched_getparam": (143, 121),
            "sched_getscheduler": (145, 120),
            "sched_get_priority_max": (146, 125),
            "sched_get_priority_min": (147, 126),
            "clock_gettime": (228, 113),
            "clock_getres": (229, 114),
            "gettimeofday": (96, 169),
            "time": (201, None),
            "times": (100, 153),
        },
    ),
}
"""All that is allowed. At its start the judge also tries every other number, which must be refused."""

NEWEST_KNOWN = 461
"""Calls with higher numbers are newer than this table: they get ENOSYS, so that libraries fall back."""

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""How the kernel names each machine to a seccomp filter."""


_UNASKED = ((335, 336), ())
"""uretprobe and uprobe: called directly, they cause SIGILL before the kernel asks any filter."""


class UnsupportedMachine(OSError):
    """No system call table for this machine."""


def machine_column(machine: str | None = None) -> int:
    """Return the table's column for `machine` (default: this one)."""
    name = machine or os.uname().machine
    if name not in AUDIT_ARCH:
        raise UnsupportedMachine(f"no system call table for machine {name!r}: known are {', '.join(AUDIT_ARCH)}")
    return list(AUDIT_ARCH).index(name)


def allowed_numbers(machine: str | None = None) -> dict[str, int]:
    """Return name to number of every allowed call that `machine` has."""
    column = machine_column(machine)
    rows = {name: row for group in GROUPS.values() for name, row in group.calls.items()}
    return {name: number for name, row in rows.items() if (number := row[column]) is not None}


def refused_numbers() -> list[int]:
    """Return every number that this machine's filter refuses outright, as far as the kernel asks filters about it."""
    unasked = _UNASKED[machine_column()]
    return sorted(set(range(NEWEST_KNOWN + 1)) - set(allowed_numbers().values()) - set(unasked))
