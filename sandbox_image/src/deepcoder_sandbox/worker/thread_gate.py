"""Limits the threads of a program that has no user of its own: the kernel asks the zygote before each new thread.

The kernel's own limit (RLIMIT_NPROC) counts everything that a user runs on the node. In a pod that includes every judge
and every trainer with the same numeric user. A thread bomb in one slot would keep honest programs in other slots from
starting threads, and zygotes from starting programs. So the zygote loads a filter on itself once, before it serves.
With it the kernel holds every new thread of the zygote's copies until the zygote has checked how many the program has.
Processes are not held: a zygote forks without being asked, and a program's own filter refuses what the program may not
do before this filter applies.

It costs nothing if no thread is created. Raises OSError if the kernel has no such notification (before 5.5), or if it
is taken (by a container runtime that uses notifications itself). Then RLIMIT_NPROC has to suffice.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from deepcoder_sandbox.worker import confine, libc, syscalls

MAX_THREADS = 128
"""Threads of a program at once. An allowed thread counts once the kernel has created it: if 127 threads ask at the same
moment, each gets its own, so that a malicious program has fewer than twice as many."""

_LD_W_ABS, _JEQ, _JSET, _RET = 0x20, 0x15, 0x45, 0x06
_NR, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
_CLONE_THREAD = 0x0001_0000
_ALLOW, _ASK = 0x7FFF_0000, 0x7FC0_0000

_QUESTION = struct.Struct("<QII64x")
_ANSWER = struct.Struct("<QqiI")
_GO_ON = 1


def assemble(machine: str | None = None) -> list[tuple[int, int, int, int]]:
    """Return the filter: ask about every clone that makes a thread, allow all else."""
    arch = list(syscalls.AUDIT_ARCH.values())[syscalls.machine_column(machine)]
    return [
        (_LD_W_ABS, 0, 0, _ARCH),
        (_JEQ, 0, 5, arch),
        (_LD_W_ABS, 0, 0, _NR),
        (_JEQ, 0, 3, syscalls.allowed_numbers(machine)["clone"]),
        (_LD_W_ABS, 0, 0, _FIRST_ARGUMENT),
        (_JSET, 0, 1, _CLONE_THREAD),
        (_RET, 0, 0, _ASK),
        (_RET, 0, 0, _ALLOW),
    ]


class ThreadGate:
    """The zygote's end: readable when a program wants a thread."""

    def __init__(self, proc: int) -> None:
        """Put the filter on this process and all it will fork. Needs no_new_privs; `proc` is a descriptor of /proc."""
        self._proc = proc
        listener = libc.seccomp_listener(b"".join(struct.pack("<HBBI", *each) for each in assemble()))
        self._listener = confine.out_of_the_way(listener)

    def fileno(self) -> int:
        """Readable when `answer` has something to do."""
        return self._listener

    def answer(self, pid: int) -> None:
        """Allow the thread that the program `pid` asks for, or make it fail as at a user's limit."""
        try:
            asked = fcntl.ioctl(self._listener, libc.SECCOMP_IOCTL_NOTIF_RECV, bytes(_QUESTION.size))
            number = _QUESTION.unpack(asked)[0]
            refusal = -errno.EAGAIN if self._threads(pid) >= MAX_THREADS else 0
            fcntl.ioctl(
                self._listener,
                libc.SECCOMP_IOCTL_NOTIF_SEND,
                _ANSWER.pack(number, 0, refusal, 0 if refusal else _GO_ON),
            )
        except (FileNotFoundError, InterruptedError):  # the asking thread has ended meanwhile
            return

    def _threads(self, pid: int) -> int:
        """Return the process's number of threads; too many if that cannot be read."""
        try:
            descriptor = os.open(f"{pid}/stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        except OSError:
            return MAX_THREADS
        try:
            return int(os.read(descriptor, 4096).rpartition(b")")[2].split()[17])
        except (OSError, ValueError, IndexError):
            return MAX_THREADS
        finally:
            os.close(descriptor)
