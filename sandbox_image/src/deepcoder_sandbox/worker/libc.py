"""The few system calls that Python does not wrap, through ctypes.

Every function raises OSError with errno and the name of the call. None fails silently, because a confinement that was
not applied must stop the runner before the program starts. The calls that every run needs are unwrapped, because every
run would pay for a wrapper: they return -1 on failure, which the caller must check.
"""

from __future__ import annotations

import ctypes
import os
import struct

# A zygote loads this module before its heap has its place (`large_heap`), and `typing` would take memory before.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_GET_KEEPCAPS = 7  # 0 where nobody has asked to keep them
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38

SECCOMP_MODE_FILTER = 2
SECCOMP_IOCTL_NOTIF_RECV = 0xC050_2100
SECCOMP_IOCTL_NOTIF_SEND = 0xC018_2101
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_NEW_LISTENER = 8

CLONE_NEWNS = 0x0002_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

_SYS_LANDLOCK_CREATE_RULESET = 444
_SYS_LANDLOCK_ADD_RULE = 445
SYS_LANDLOCK_RESTRICT_SELF = 446
_LEFT_AT_THE_END = 2 << 12  # trimming leaves the last page, or a part of it
_HOLES = (60_000, 30_000, 15_000, 8_000, 4_000, 2_000, *range(1_016, 8, -16))
_MOST_HOLES = 10_000

PROT_READ_WRITE, PROT_READ_EXECUTE = 3, 5
MADV_HUGEPAGE, MADV_POPULATE_WRITE, MADV_COLLAPSE = 14, 23, 25
_MAP_PRIVATE_ANONYMOUS = 0x22
_FAILED = ctypes.c_void_p(-1).value
_MREMAP_MAYMOVE_FIXED = 3

_libc.mmap.restype = _libc.mremap.restype = _libc.sbrk.restype = _libc.malloc.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
_libc.sbrk.argtypes = [ctypes.c_ssize_t]
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.free.argtypes = [ctypes.c_void_p]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = _libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}


def process_cpu_clock(pid: int) -> int:
    """Return the clock id of another process's CPU time, as clock_getcpuclockid(3) makes it."""
    return (~pid << 3) | 2


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


_bare = ctypes.PyDLL(None)
bare_prctl: Any = _bare.prctl
bare_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
bare_syscall: Any = _bare.syscall
bare_fork: Any = _bare.fork
"""fork(2) without what os.fork does around it, which resets the interpreter's locks and threads. For a process with a
single thread, so that no other one can hold a lock, and without fork hooks of modules (`boot`)."""
bare_waitpid: Any = _bare.waitpid
"""os.waitpid raises an exception if there is no child, which is a common case here."""
# These two write their results where the caller says, and create no objects.
bare_wait4: Any = _bare.wait4
bare_wait4.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
bare_poll: Any = _bare.poll
bare_poll.argtypes = [ctypes.c_void_p, ctypes.c_ulong, ctypes.c_int]


def prctl(option: int, argument: int = 0) -> None:
    """prctl(2) with one number."""
    _check(_libc.prctl(option, *map(ctypes.c_ulong, (argument, 0, 0, 0))), f"prctl({option})")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    result = _libc.mount(
        source.encode(),
        target.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() if data else None,
    )
    _check(result, f"mount({source!r}, {target!r}, {kind})")


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(target.encode(), flags), f"umount2({target!r})")


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2)."""
    _check(_libc.syscall(_SYS_PIVOT_ROOT[os.uname().machine], new.encode(), old.encode()), "pivot_root")


def drop_capabilities() -> None:
    """Empty the permitted, effective and inheritable sets of this thread."""
    header = (ctypes.c_uint32 * 2)(0x2008_0522, 0)
    data = (ctypes.c_uint32 * 6)()
    _check(_libc.syscall(_SYS_CAPSET[os.uname().machine], header, data), "capset")


def landlock_abi() -> int:
    """Return the kernel's Landlock ABI version; 0 if it has none."""
    version = _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    return max(0, int(version))


def landlock_create_ruleset(attributes: bytes) -> int:
    """Return the descriptor of a new ruleset."""
    result = _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    return _check(int(result), "landlock_create_ruleset")


def landlock_add_path_rule(ruleset: int, attributes: bytes) -> None:
    """Add a rule beneath a path."""
    _check(int(_libc.syscall(_SYS_LANDLOCK_ADD_RULE, ruleset, 1, attributes, 0)), "landlock_add_rule")


def seccomp_listener(instructions: bytes) -> int:
    """Bind this thread, and what it forks, to a filter; return the descriptor on which the filter asks."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    header = struct.pack("<HxxxxxxQ", len(instructions) // 8, ctypes.addressof(code))
    number = _SYS_SECCOMP[os.uname().machine]
    result = _libc.syscall(number, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_NEW_LISTENER, header)
    return _check(int(result), "seccomp")


def map_memory(length: int) -> int | None:
    """Return the address of new memory; None if there is none."""
    address: int | None = _libc.mmap(None, length, PROT_READ_WRITE, _MAP_PRIVATE_ANONYMOUS, -1, 0)
    return None if address == _FAILED else address


def unmap(address: int, length: int) -> None:
    """Unmap memory; 0 bytes are no error."""
    if length:
        _libc.munmap(address, length)


def advise(address: int, length: int, advice: int) -> bool:
    """madvise(2); return whether it worked."""
    return bool(_libc.madvise(address, length, advice) == 0)


def protect(address: int, length: int, protection: int) -> bool:
    """mprotect(2); return whether it worked."""
    return bool(_libc.mprotect(address, length, protection) == 0)


def move_mapping(source: int, target: int, length: int) -> bool:
    """Replace what is at `target` by memory; return whether it worked."""
    return bool(_libc.mremap(source, length, length, _MREMAP_MAYMOVE_FIXED, target) == target)


def extend_heap(length: int) -> int | None:
    """Move the end of the allocator's heap by `length`, and return where it was; None if it has no such heap.

    The allocator does not use what it did not request itself, and goes on behind it.
    """
    if not hasattr(_libc, "malloc_trim"):
        return None
    end: int = _libc.sbrk(length)
    return None if end == _FAILED else end


def allocate(size: int) -> int:
    """malloc(3): return an address, 0 if there is no memory."""
    return _libc.malloc(size) or 0


def free(address: int) -> None:
    """free(3)."""
    _libc.free(address)


def trim_heap() -> None:
    """Return the allocator's free memory to the kernel, if possible: every fork would copy its page tables."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(ctypes.c_size_t(0))


def fill_heap() -> None:
    """Take for good the allocator's free memory between what is in use, largest first, if it can be found."""
    trim_heap()
    end = extend_heap(0)
    if end is None:
        return
    for size in _HOLES:
        for _ in range(_MOST_HOLES):
            if (allocate(size) or end) >= end - _LEFT_AT_THE_END:
                break
