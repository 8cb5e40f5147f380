"""Confining the runner: the steps between fork and the program's first instruction.

Any step that fails raises, and the runner leaves before the program starts: the zygote then sees that the ready mark
was never set and answers that the judge failed. There is no half-confined program.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
from dataclasses import dataclass

from deepcoder_sandbox.worker import libc
from deepcoder_sandbox.worker.seccomp import Filter

_MIB = 1 << 20
_RUNNERS_DESCRIPTORS = 16
_FIXED_LIMITS = ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_MEMLOCK, 0), (resource.RLIMIT_MSGQUEUE, 0))


@dataclass(frozen=True)
class Confinement:
    """What every runner of a zygote is confined by."""

    ruleset: int | None
    """Landlock ruleset, None in the unconfined tier."""

    filter: Filter | None
    """System call filter, None in the unconfined tier."""

    uid: int | None
    """User and group to become, None to stay."""

    base_address_space: int
    """Bytes of address space of an idle runner, to which the memory limit is added."""


@dataclass(frozen=True)
class Limits:
    """Limits of one run."""

    cpu_s: float
    memory_mb: int
    file_bytes: int
    open_files: int
    stack_bytes: int


def prepare_zygote(max_threads: int, keep_capabilities: bool) -> None:
    """Do once, in the zygote, what its runners inherit."""
    for number in (signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    for which, limit in (*_FIXED_LIMITS, (resource.RLIMIT_NPROC, max_threads)):
        _lower(which, limit, limit)
    if not keep_capabilities:
        libc.drop_capabilities()
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    libc.prctl(libc.PR_SET_DUMPABLE, 0)


def reserve_low_descriptors() -> None:
    """Occupy the numbers that runners use, so that what a zygote is sent is never in the way of them."""
    while (descriptor := os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)) < _RUNNERS_DESCRIPTORS:
        continue
    os.close(descriptor)


def place_descriptors(descriptors: list[int]) -> None:
    """Make the given descriptors 0, 1, 2, … and close every other. None may be given as one of these."""
    for index, fd in enumerate(descriptors):
        if fd < len(descriptors):
            raise ValueError(f"descriptor {fd} is in the way")
        os.dup2(fd, index)
    os.closerange(len(descriptors), 1 << 20)


def apply(confinement: Confinement, limits: Limits, parent: int, descriptors: list[int]) -> None:
    """Confine this process for good and leave it with `descriptors` as 0, 1, 2, …."""
    if confinement.uid is not None:  # which empties its capabilities and marks it dumpable again or not
        os.setgroups([])
        os.setresgid(confinement.uid, confinement.uid, confinement.uid)
        os.setresuid(confinement.uid, confinement.uid, confinement.uid)
        libc.prctl(libc.PR_SET_DUMPABLE, 0)
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise ProcessLookupError("the zygote is gone")
    if confinement.ruleset is not None:
        libc.landlock_restrict_self(confinement.ruleset)
    place_descriptors(descriptors)
    cpu = int(limits.cpu_s) + 2  # a backstop: the zygote ends the run to the millisecond
    address_space = confinement.base_address_space + limits.memory_mb * _MIB
    _lower(resource.RLIMIT_CPU, cpu, cpu + 1)
    _lower(resource.RLIMIT_AS, address_space, address_space)
    _lower(resource.RLIMIT_FSIZE, limits.file_bytes, limits.file_bytes)
    _lower(resource.RLIMIT_NOFILE, limits.open_files, limits.open_files)
    _lower(resource.RLIMIT_STACK, limits.stack_bytes, resource.RLIM_INFINITY)
    if confinement.filter is not None:
        confinement.filter.load(os.getpid())
    gc.enable()


def _lower(which: int, soft: int, hard: int) -> None:
    """Set a limit, as far as the hard one in force allows."""
    ceiling = resource.getrlimit(which)[1]
    if ceiling != resource.RLIM_INFINITY:
        soft = min(soft, ceiling)
        hard = ceiling if hard == resource.RLIM_INFINITY else min(hard, ceiling)
    resource.setrlimit(which, (soft, hard))
