"""Confines the runner: the steps between fork and the program's first instruction.

If a step fails, it raises, and the runner exits before the program starts. The zygote then sees that the ready mark was
not set, and answers that the judge failed. No program is ever half confined.

Memory that `apply` touches is copied for every run. So it follows steps that the zygote has prepared, looks up little,
and calls none of our code except the filter.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
from collections.abc import Callable
from gc import enable
from os import closerange, getpid, getppid
from resource import RLIMIT_AS, RLIMIT_CPU, RLIMIT_FSIZE, setrlimit
from typing import Any

from deepcoder_sandbox.worker import libc
from deepcoder_sandbox.worker.seccomp import Filter, Program, assemble_own

_MIB = 1 << 20
_CPU_BACKSTOP_S = 3  # the zygote ends a run to the millisecond

RUNNERS_DESCRIPTORS = 16
"""Descriptors below this are for runners."""

OPEN_FILES = 64
"""Maximum number of files that a program may have open."""

QUEUED_SIGNALS = 64
"""Maximum number of signals that wait for a program."""

_FIXED_LIMITS = (
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_MEMLOCK, 0),
    (resource.RLIMIT_MSGQUEUE, 0),
    (resource.RLIMIT_NOFILE, OPEN_FILES),
    (resource.RLIMIT_SIGPENDING, QUEUED_SIGNALS),  # the kernel counts them for the user on the whole node
)
_PAST_ALL_DESCRIPTORS = 1 << 20
NO_DESCRIPTOR = _PAST_ALL_DESCRIPTORS - 1
"""A number that no descriptor has, because a zygote and its runners may have only `OPEN_FILES`."""

_NO_CEILING = (1 << 63) - 1


class Confinement:
    """Confines each runner of a zygote."""

    def __init__(
        self, ruleset: int | None, system_calls: Filter | None, uid: int | None, base_address_space: int
    ) -> None:
        """Prepare for `apply`.

        `ruleset` is Landlock's, `system_calls` the filter; None in the unconfined tier. `uid` is the user and group to
        become, None to stay. `base_address_space` is an idle runner's, in bytes; a memory limit is added to it.
        """
        steps: list[tuple[Callable[..., Any], tuple[int, ...]]] = []
        if uid is not None:  # this drops its capabilities; the zygote has dropped its groups
            steps += [(os.setresgid, (uid, uid, uid)), (os.setresuid, (uid, uid, uid))]
            # not dumpable: the kernel has done this already, unless fs.suid_dumpable says otherwise
            steps.append((libc.bare_prctl, (libc.PR_SET_DUMPABLE, 0, 0, 0, 0)))
        steps.append((libc.bare_prctl, (libc.PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)))
        if ruleset is not None:
            steps.append((libc.bare_syscall, (libc.SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0)))
        self._steps = tuple(steps)
        self._load_filter = system_calls.own.load if system_calls is not None else None
        self._base_address_space = base_address_space
        self._descriptors_end = _PAST_ALL_DESCRIPTORS
        self._ceilings = tuple(map(_ceiling, (RLIMIT_CPU, RLIMIT_AS, RLIMIT_FSIZE)))
        self._keeps_limits = True

    @classmethod
    def harmless(cls, *, confined: bool) -> Confinement:
        """Return one whose steps confine nothing, for a rehearsal in a zygote.

        With limits above all others, its `apply` changes nothing.
        """
        confinement = cls(None, None, None, 0)
        nobody = (-1, -1, -1)
        asking = (libc.bare_prctl, (libc.PR_GET_KEEPCAPS, 0, 0, 0, 0))
        confinement._steps = ((os.setresgid, nobody), (os.setresuid, nobody), asking)
        confinement._descriptors_end = 1  # no descriptor lies between
        confinement._keeps_limits = False
        if confined:
            confinement._load_filter = Program(assemble_own(), libc.PR_GET_KEEPCAPS).load
        return confinement

    def most_memory_mb(self) -> int:
        """Return the largest memory limit that `apply` can set, in MiB."""
        return (self._ceilings[1] - self._base_address_space) // _MIB

    def apply(self, limits: tuple[float, float, int, int], parent: int, descriptors: int, kept: int) -> None:
        """Confine this process for good; close all but its first `descriptors` descriptors, and the one `kept`.

        `limits` are those of `packets.RunLimits`.
        """
        for step, arguments in self._steps:
            if step(*arguments):  # Python's own functions raise; the others return 0
                raise OSError(f"{step.__name__}{arguments} failed")
        if getppid() != parent:
            raise ProcessLookupError("the zygote is gone")
        closerange(descriptors, kept)
        closerange(kept + 1, self._descriptors_end)
        cpu_limit_s, _, memory_limit_mb, file_bytes = limits
        most_cpu_s, most_address_space, most_file_bytes = self._ceilings
        cpu_s = int(cpu_limit_s) + _CPU_BACKSTOP_S
        address_space = self._base_address_space + memory_limit_mb * _MIB
        if cpu_s > most_cpu_s or address_space > most_address_space or file_bytes > most_file_bytes:
            if self._keeps_limits:  # with less than it may have, the program would seem to exceed its limits
                raise OSError("the limits of the judge itself (ulimit -t, -v, -f) are below the program's")
            cpu_s, address_space, file_bytes = self._ceilings
        setrlimit(RLIMIT_CPU, (cpu_s, min(cpu_s + 1, most_cpu_s)))
        setrlimit(RLIMIT_AS, (address_space, address_space))
        setrlimit(RLIMIT_FSIZE, (file_bytes, file_bytes))
        if self._load_filter is not None:
            self._load_filter(getpid())
        enable()


def end_before_the_judge() -> None:
    """If memory runs out, have the kernel kill a runner or a zygote, not the server.

    For a zygote that is still its judge's user: once it has become another, its own file in /proc is not its own.
    """
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")


def prepare_zygote(stack_bytes: int, keep_capabilities: bool) -> None:
    """Do once, in the zygote, what its runners inherit. Raises OSError if there is less stack than `stack_bytes`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # programs interrupt themselves (`_thread.interrupt_main`)
    for which, limit in _FIXED_LIMITS:
        _lower(which, limit, limit)
    limit_stack(stack_bytes)
    if not keep_capabilities:
        libc.drop_capabilities()
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    libc.prctl(libc.PR_SET_DUMPABLE, 0)


def limit_stack(stack_bytes: int) -> None:
    """Set a limit that programs may raise. Raises OSError if the judge's own is lower: right programs would crash."""
    most = _ceiling(resource.RLIMIT_STACK)
    if most < stack_bytes:
        raise OSError(f"programs need a stack of {stack_bytes >> 10} KiB, and the judge has {most >> 10} (ulimit -Hs)")
    _lower(resource.RLIMIT_STACK, stack_bytes, resource.RLIM_INFINITY)


def limit_threads(most: int) -> None:
    """Have the kernel limit the threads and processes of the runners' user, wherever they are."""
    _lower(resource.RLIMIT_NPROC, most, most)


def out_of_the_way(descriptor: int) -> int:
    """Return a copy of a descriptor that a zygote keeps using, with a number that runners do not use."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, RUNNERS_DESCRIPTORS)


def _ceiling(which: int) -> int:
    """Return the hard limit in force."""
    hard = resource.getrlimit(which)[1]
    return _NO_CEILING if hard == resource.RLIM_INFINITY else hard


def _lower(which: int, soft: int, hard: int) -> None:
    """Set a limit, as far as the hard one in force allows."""
    ceiling = resource.getrlimit(which)[1]
    if ceiling != resource.RLIM_INFINITY:
        soft = min(soft, ceiling)
        hard = ceiling if hard == resource.RLIM_INFINITY else min(hard, ceiling)
    resource.setrlimit(which, (soft, hard))
