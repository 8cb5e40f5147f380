"""Confining the runner: the steps between fork and the program's first instruction.

Any step that fails raises, and the runner leaves before the program starts: the zygote then sees that the ready mark
was never set and answers that the judge failed. There is no half-confined program.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import resource
import signal

from deepcoder_sandbox.worker import libc
from deepcoder_sandbox.worker.packets import RunLimits
from deepcoder_sandbox.worker.seccomp import Filter

_MIB = 1 << 20
_CPU_BACKSTOP_S = 3  # the zygote ends a run to the millisecond

RUNNERS_DESCRIPTORS = 16
"""Descriptors below this are for runners."""

OPEN_FILES = 64
"""Most that a program may have open."""

QUEUED_SIGNALS = 64
"""Most signals that wait for a program."""

_FIXED_LIMITS = (
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_MEMLOCK, 0),
    (resource.RLIMIT_MSGQUEUE, 0),
    (resource.RLIMIT_NOFILE, OPEN_FILES),
    (resource.RLIMIT_SIGPENDING, QUEUED_SIGNALS),  # counted, with the kernel's memory, for the user on the whole node
)
_CEILINGS = {
    which: resource.getrlimit(which)[1] for which in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE)
}
"""The hard limits in force of those that each runner sets, which then has not to ask for them."""


class Confinement:
    """What every runner of a zygote is confined by."""

    def __init__(
        self, ruleset: int | None, system_calls: Filter | None, uid: int | None, base_address_space: int
    ) -> None:
        """Prepare for `apply`.

        `ruleset` is Landlock's, `system_calls` the filter: None in the unconfined tier. `uid` is the user and group to
        become, None to stay. `base_address_space` is what an idle runner has, in bytes: a memory limit is added to it.
        """
        self._ruleset = ruleset
        self._filter = system_calls
        self._uid = uid
        self._base_address_space = base_address_space

    def apply(self, limits: RunLimits, parent: int, descriptors: int) -> None:
        """Confine this process for good and leave it with its first so many `descriptors` alone."""
        if self._uid is not None:  # which empties its capabilities; the zygote has emptied its groups
            os.setresgid(self._uid, self._uid, self._uid)
            os.setresuid(self._uid, self._uid, self._uid)
            libc.prctl(libc.PR_SET_DUMPABLE, 0)  # as the kernel had it do, unless fs.suid_dumpable says otherwise
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            raise ProcessLookupError("the zygote is gone")
        if self._ruleset is not None:
            libc.landlock_restrict_self(self._ruleset)
        os.closerange(descriptors, 1 << 20)
        cpu_s = int(limits.cpu_limit_s) + _CPU_BACKSTOP_S
        address_space = self._base_address_space + limits.memory_limit_mb * _MIB
        _lower(resource.RLIMIT_CPU, cpu_s, cpu_s + 1)
        _lower(resource.RLIMIT_AS, address_space, address_space)
        _lower(resource.RLIMIT_FSIZE, limits.file_bytes, limits.file_bytes)
        if self._filter is not None:
            self._filter.load(os.getpid())
        gc.enable()


def prepare_zygote(stack_bytes: int, keep_capabilities: bool) -> None:
    """Do once, in the zygote, what its runners inherit. `stack_bytes` is a limit that programs may raise."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # for want of memory the kernel ends a runner or a zygote, and not the server
    for number in (signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    for which, limit in _FIXED_LIMITS:
        _lower(which, limit, limit)
    _lower(resource.RLIMIT_STACK, stack_bytes, resource.RLIM_INFINITY)
    if not keep_capabilities:
        libc.drop_capabilities()
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    libc.prctl(libc.PR_SET_DUMPABLE, 0)


def limit_threads(most: int) -> None:
    """Have the kernel count the threads, and processes, of the zygote's or the runners' user, wherever they are."""
    _lower(resource.RLIMIT_NPROC, most, most)


def out_of_the_way(descriptor: int) -> int:
    """Return a copy of a descriptor that a zygote goes on using, with a number that runners do not use."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, RUNNERS_DESCRIPTORS)


def _lower(which: int, soft: int, hard: int) -> None:
    """Set a limit, as far as the hard one in force allows."""
    ceiling = _CEILINGS.get(which)
    if ceiling is None:
        ceiling = resource.getrlimit(which)[1]
    if ceiling != resource.RLIM_INFINITY:
        soft = min(soft, ceiling)
        hard = ceiling if hard == resource.RLIM_INFINITY else min(hard, ceiling)
    resource.setrlimit(which, (soft, hard))
