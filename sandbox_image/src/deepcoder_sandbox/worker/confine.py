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

_PARKING = 32  # above any descriptor of a zygote
_MIB = 1 << 20
_DEFAULT_HANDLERS = (signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Confinement:
    """What every runner of a zygote is confined by."""

    ruleset: int | None
    """Landlock ruleset, None in the unconfined tier."""

    filter: Filter | None
    """System call filter, None in the unconfined tier."""

    uid: int | None
    """User and group to become, None to stay."""

    max_threads: int
    """RLIMIT_NPROC."""

    base_address_space: int
    """Bytes of address space of an idle runner, to which the memory limit is added."""

    directory: str
    """Where the program starts."""


@dataclass(frozen=True)
class Limits:
    """Limits of one run."""

    cpu_s: float
    memory_mb: int
    file_bytes: int
    open_files: int
    stack_bytes: int


def place_descriptors(descriptors: list[int]) -> None:
    """Make the given descriptors 0, 1, 2, … and close every other."""
    high = [os.dup2(fd, _PARKING + index, inheritable=False) for index, fd in enumerate(descriptors)]
    for index, fd in enumerate(high):
        os.dup2(fd, index, inheritable=True)
    os.closerange(len(descriptors), 1 << 20)


def apply(confinement: Confinement, limits: Limits, parent: int, descriptors: list[int]) -> None:
    """Confine this process for good and leave it with `descriptors` as 0, 1, 2, …."""
    for number in _DEFAULT_HANDLERS:
        signal.signal(number, signal.SIG_DFL)
    if confinement.uid is not None:
        os.setgroups([])
        os.setresgid(confinement.uid, confinement.uid, confinement.uid)
        os.setresuid(confinement.uid, confinement.uid, confinement.uid)
    libc.drop_capabilities()
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise ProcessLookupError("the zygote is gone")
    os.chdir(confinement.directory)
    if confinement.ruleset is not None:
        libc.landlock_restrict_self(confinement.ruleset)
    place_descriptors(descriptors)
    _set_rlimits(confinement, limits)
    if confinement.filter is not None:
        confinement.filter.load(os.getpid())
    gc.enable()


def _set_rlimits(confinement: Confinement, limits: Limits) -> None:
    cpu = int(limits.cpu_s) + 2  # a backstop: the zygote ends the run to the millisecond
    pairs = (
        (resource.RLIMIT_CPU, (cpu, cpu + 1)),
        (resource.RLIMIT_AS, 2 * (confinement.base_address_space + limits.memory_mb * _MIB,)),
        (resource.RLIMIT_FSIZE, 2 * (limits.file_bytes,)),
        (resource.RLIMIT_NOFILE, 2 * (limits.open_files,)),
        (resource.RLIMIT_NPROC, 2 * (confinement.max_threads,)),
        (resource.RLIMIT_CORE, (0, 0)),
        (resource.RLIMIT_MEMLOCK, (0, 0)),
        (resource.RLIMIT_MSGQUEUE, (0, 0)),
    )
    for which, pair in pairs:
        soft, hard = pair
        ceiling = resource.getrlimit(which)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(which, (soft, hard))
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    soft = limits.stack_bytes if hard == resource.RLIM_INFINITY else min(limits.stack_bytes, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))
