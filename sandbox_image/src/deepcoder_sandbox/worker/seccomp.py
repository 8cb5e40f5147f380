"""The system call filter: BPF built here and passed to the kernel with prctl, in two parts.

The first part is loaded once per zygote, and its runners inherit it for free. It allows what a computing program may do
and the few calls that serving needs. The second part is small, because every test pays for loading it. It takes those
few calls away from the runner and contains the runner's own pid. `deepcoder_sandbox.worker.syscalls` lists what both
parts allow.

A program may compute, use threads and access the files that Landlock allows. It may not start a process, open a socket,
signal any other process, or raise a limit. A refused call fails with EPERM, so an honest program that tries one gets an
exception and is not killed.

Two rules look odd but matter. First, a program may not have SIGKILL sent to *itself*: not by kill, not by a timer that
delivers it, not by a limit that the kernel enforces with it (RLIMIT_CPU, RLIMIT_RTTIME). A process that dies of a
SIGKILL that the zygote did not send was killed from outside. That is the judge's failure and is retried, and no program
may cause that for itself. Second, clone3 returns ENOSYS, because its flags are in memory, where a filter cannot see
them. Libraries then fall back to clone, whose flags are visible.

A thread shares the descriptors of its process: the limit on open files is one per table of descriptors, so a thread
with a table of its own (clone without CLONE_FILES, close_range with CLOSE_RANGE_UNSHARE) would have them once more,
and kernel memory for its pipes. The C library's threads always share them.

Nor may memory be mapped that is shared and anonymous. Its pages belong to a hidden file, which keeps them all until the
last mapping is gone, however little of it is still mapped. But the limit on address space counts only what is mapped.

A program may not wait inside the kernel at will either, because such a wait is attributed to the machine
(`deepcoder_sandbox.worker.starvation`), and some waits block the whole machine. So three things are refused as by a
kernel that does not have them: reading past the page cache, giving pages back to the disk, and CLONE_VFORK, which makes
one thread wait for the end of another. Calls that flush data to disk return success without doing anything, because
nothing that a program writes here is on a disk.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable

from deepcoder_sandbox.worker import libc, syscalls

_LD_W_ABS, _JEQ, _JGE, _JSET, _AND, _RET = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NR, _ARCH = 0, 4
_ALLOW = 0x7FFF_0000
_KILL = 0x8000_0000
_EPERM = 0x0005_0000 | 1
_ENOSYS = 0x0005_0000 | 38
_EINVAL = 0x0005_0000 | 22
_ENOTTY = 0x0005_0000 | 25
_EOPNOTSUPP = 0x0005_0000 | 95
_DONE = 0x0005_0000
"""The call is not made, and returns 0."""

_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
"""The first is also a part of MAP_SHARED_VALIDATE."""
_CLONE_THREAD = 0x0001_0000
_CLONE_VFORK = 0x0000_4000
_CLONE_FILES = 0x0000_0400
_CLOSE_RANGE_UNSHARE = 2
_NEW_NAMESPACES = 0x7E02_0080
_SIGKILL, _SIGSTOP = 9, 19
_RLIMIT_CPU = 0
_RLIMITS_SETTABLE = (1, 2, 3, 4, 7, 9)
"""FSIZE, DATA, STACK, CORE, NOFILE, AS: exceeding them never causes SIGKILL."""
_PRCTL_OPTIONS = (
    *(15, 16, 0x5356_4D41),  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA (the allocator names its memory)
    *(3, 21, 39),  # PR_GET_DUMPABLE, PR_GET_SECCOMP, PR_GET_NO_NEW_PRIVS: the judge's own probe asks
)
_PRCTLS_TO_CONFINE = (libc.PR_SET_PDEATHSIG, libc.PR_SET_DUMPABLE, libc.PR_SET_SECCOMP)
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_FCNTLS = (
    *(0, 1, 2, 3, 4, 1030),  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
    *(1032, 1033, 1034),  # F_GETPIPE_SZ, F_ADD_SEALS, F_GET_SEALS
)
"""Not F_SETOWN, F_SETSIG, F_SETLEASE, F_NOTIFY, which end in a signal; not F_SETPIPE_SZ and locks of ranges, which take
kernel memory outside every limit of the program."""
_F_SETFL = 4
_O_DIRECT = (0x4000, 0x1_0000)
"""By machine: (x86_64, aarch64)."""
_O_WRONLY, _O_RDWR, _O_ACCMODE, _O_TRUNC = 1, 2, 3, 0x200
_ADVICE = (
    *(0, 1, 2, 3, 4, 8),  # MADV_NORMAL, RANDOM, SEQUENTIAL, WILLNEED, DONTNEED, FREE
    *(10, 11, 14, 15, 16, 17, 18, 19),  # of forks, huge pages and dumps
)
"""Not COLD, PAGEOUT and COLLAPSE, which write pages to disk, or wait until every processor has let go of them."""


_TO_SERVE: dict[str, tuple[int, int]] = {
    "recvmsg": (47, 212),
    "recvfrom": (45, 207),
    "sendto": (44, 206),
    "pidfd_open": (434, 434),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "landlock_restrict_self": (446, 446),
}
"""Calls that a zygote needs beyond a program's, until a runner loads its part: (x86_64, aarch64) numbers."""


class _Pid(int):
    """A constant that stands for the runner's own pid; its place is patched before loading."""


_OWN_PID = _Pid(0)
Instruction = tuple[int, int, int, int]
Line = tuple[str, tuple[int, str | int, str | int, int]]
"""A label, or '', and an instruction that may jump to labels."""


def _argument(index: int, high: bool = False) -> Instruction:
    """Load the low (or high) half of a call's argument; both machines are little-endian."""
    return (_LD_W_ABS, 0, 0, 16 + 8 * index + (4 if high else 0))


def _in_set(index: int, values: tuple[int, ...], inside: int, outside: int) -> list[Instruction]:
    code: list[Instruction] = [_argument(index)]
    for position, value in enumerate(values):
        code.append((_JEQ, len(values) - position, 0, value))
    return [*code, (_RET, 0, 0, outside), (_RET, 0, 0, inside)]


def _prlimit_rule() -> list[Instruction]:
    """Allow reading any limit of the caller, and setting those that are safe (and in this part that of CPU time)."""
    to_set = _in_set(1, (_RLIMIT_CPU, *_RLIMITS_SETTABLE), _ALLOW, _EPERM)
    to_refusal, to_leave = len(to_set) - 2, len(to_set) - 1
    return [
        _argument(0),
        (_JEQ, 0, 4 + to_refusal, 0),
        _argument(2),
        (_JEQ, 0, 2, 0),
        _argument(2, high=True),
        (_JEQ, to_leave, 0, 0),
        *to_set,
    ]


def _without(index: int, flags: int, refusal: int) -> list[Instruction]:
    """Allow a call whose argument has none of these flags."""
    return [_argument(index), (_JSET, 1, 0, flags), (_RET, 0, 0, _ALLOW), (_RET, 0, 0, refusal)]


def _mmap_rule() -> list[Instruction]:
    """Allow shared mappings of files, and private ones."""
    return [_argument(3), (_JSET, 1, 0, _MAP_SHARED), (_RET, 0, 0, _ALLOW), *_without(3, _MAP_ANONYMOUS, _EPERM)]


def _fcntl_rule(o_direct: int) -> list[Instruction]:
    """Allow `_FCNTLS`, and no reading past the page cache."""
    flags = _without(2, o_direct, _EINVAL)
    return [_argument(1), (_JEQ, 0, len(flags), _F_SETFL), *flags, *_in_set(1, _FCNTLS, _ALLOW, _EPERM)]


_RULES: dict[str, list[Instruction]] = {
    "clone": _without(0, _NEW_NAMESPACES | _CLONE_VFORK, _EPERM),
    "close_range": _without(2, _CLOSE_RANGE_UNSHARE, _EPERM),
    "clone3": [(_RET, 0, 0, _ENOSYS)],
    "mmap": _mmap_rule(),
    "madvise": _in_set(2, _ADVICE, _ALLOW, _EINVAL),
    "preadv2": _in_set(5, (0,), _ALLOW, _EOPNOTSUPP),
    "pwritev2": _in_set(5, (0,), _ALLOW, _EOPNOTSUPP),
    "fsync": [(_RET, 0, 0, _DONE)],
    "fdatasync": [(_RET, 0, 0, _DONE)],
    "msync": [(_RET, 0, 0, _DONE)],
    "tgkill": _in_set(2, (_SIGKILL, _SIGSTOP), _EPERM, _ALLOW),
    "ioctl": _in_set(1, (*_IOCTLS, libc.SECCOMP_IOCTL_NOTIF_RECV, libc.SECCOMP_IOCTL_NOTIF_SEND), _ALLOW, _ENOTTY),
    "prctl": _in_set(0, (*_PRCTL_OPTIONS, *_PRCTLS_TO_CONFINE), _ALLOW, _EPERM),
    "prlimit64": _prlimit_rule(),
}


def _opening_rule(index: int, o_direct: int) -> list[Instruction]:
    """Allow opening, but neither reading past the page cache nor emptying a file without opening it for writing.

    Landlock knows nothing of the latter before Linux 6.2. Access mode 3 grants nothing, and is no writing either.
    """
    return [
        _argument(index),
        (_JSET, 5, 0, o_direct),
        (_JSET, 0, 3, _O_TRUNC),
        (_AND, 0, 0, _O_ACCMODE),
        (_JEQ, 1, 0, _O_WRONLY),
        (_JEQ, 0, 2, _O_RDWR),
        (_RET, 0, 0, _ALLOW),
        (_RET, 0, 0, _EINVAL),
        (_RET, 0, 0, _EPERM),
    ]


def _rules(column: int) -> dict[str, list[Instruction]]:
    """Return the rule of every call that is allowed in part."""
    flag = _O_DIRECT[column]
    on_files = {"open": _opening_rule(1, flag), "openat": _opening_rule(2, flag), "fcntl": _fcntl_rule(flag)}
    return _RULES | on_files


class Program:
    """A filter program in memory, ready to load, with holes where a runner's pid belongs."""

    def __init__(self, instructions: list[Instruction], option: int = libc.PR_SET_SECCOMP) -> None:
        """`option` is prctl(2)'s; any other does not load it."""
        packed = b"".join(struct.pack("<HBBI", *instruction) for instruction in instructions)
        code = (ctypes.c_char * len(packed)).from_buffer_copy(packed)
        self._words = memoryview(code).cast("B").cast("I")
        self._holes = tuple(
            2 * index + 1 for index, instruction in enumerate(instructions) if isinstance(instruction[3], _Pid)
        )
        header = struct.pack("<HxxxxxxQ", len(instructions), ctypes.addressof(code))
        self._header = ctypes.create_string_buffer(header)
        self._arguments = (option, libc.SECCOMP_MODE_FILTER, ctypes.addressof(self._header), 0, 0)

    def load(self, pid: int) -> None:
        """Bind this thread, and what it forks, for good. Needs no_new_privs. Raises OSError."""
        for hole in self._holes:
            self._words[hole] = pid
        if libc.bare_prctl(*self._arguments):
            raise OSError("the kernel does not take the system call filter")


class Filter:
    """Both parts, ready to load: that of a zygote, and that of a runner, by its pid."""

    def __init__(self) -> None:
        self.inherited = Program(assemble_inherited())
        self.own = Program(assemble_own())


def assemble_inherited(machine: str | None = None) -> list[Instruction]:
    """Return the part for zygote and runners: check the machine, then find the call by bisection."""
    column = syscalls.machine_column(machine)
    numbers = syscalls.allowed_numbers(machine)
    blocks: dict[str, list[Instruction]] = {"allow": [(_RET, 0, 0, _ALLOW)], "refuse": [(_RET, 0, 0, _EPERM)]}
    blocks["unknown"] = [(_RET, 0, 0, _ENOSYS)]
    action = dict.fromkeys([*numbers.values(), *(row[column] for row in _TO_SERVE.values())], "allow")
    for name, block in _rules(column).items():
        if name in numbers:
            blocks[name] = block
            action[numbers[name]] = name
    bounds: list[tuple[int, str]] = []
    for number in range(syscalls.NEWEST_KNOWN + 1):
        target = action.get(number, "refuse")
        if not bounds or bounds[-1][1] != target:
            bounds.append((number, target))
    bounds.append((syscalls.NEWEST_KNOWN + 1, "unknown"))
    bounds.append((0x4000_0000, "refuse"))  # the x32 variants of x86_64
    head: list[Instruction] = [
        (_LD_W_ABS, 0, 0, _ARCH),
        (_JEQ, 1, 0, list(syscalls.AUDIT_ARCH.values())[column]),
        (_RET, 0, 0, _KILL),
        (_LD_W_ABS, 0, 0, _NR),
    ]
    return head + _bisect(bounds, lambda target: blocks[target])


def _bisect(bounds: list[tuple[int, str]], block: Callable[[str], list[Instruction]]) -> list[Instruction]:
    if len(bounds) == 1:
        return block(bounds[0][1])
    middle = len(bounds) // 2
    low, high = _bisect(bounds[:middle], block), _bisect(bounds[middle:], block)
    if len(low) > 255:
        raise ValueError("filter too large for a BPF jump: split the system call table")
    return [(_JGE, len(low), 0, bounds[middle][0]), *low, *high]


def assemble_own(machine: str | None = None) -> list[Instruction]:
    """Return the part for a runner only. The other part has checked the machine, and what both would refuse."""
    column = syscalls.machine_column(machine)
    numbers = syscalls.allowed_numbers(machine)
    rules: list[Line] = [
        ("clone", _argument(0)),
        ("", (_JSET, "", "refuse", _CLONE_THREAD)),
        ("", (_JSET, "allow", "refuse", _CLONE_FILES)),
        ("kill", _argument(1)),
        ("", (_JEQ, "refuse", "", _SIGKILL)),
        ("", (_JEQ, "refuse", "", _SIGSTOP)),
        ("tgkill", _argument(0)),
        ("", (_JEQ, "allow", "refuse", _OWN_PID)),
        ("prctl", _argument(0)),
        *(("", (_JEQ, "refuse", "", option)) for option in _PRCTLS_TO_CONFINE[:-1]),
        ("", (_JEQ, "refuse", "allow", _PRCTLS_TO_CONFINE[-1])),
        ("prlimit64", _argument(1)),
        ("", (_JEQ, "", "allow", _RLIMIT_CPU)),
        ("", _argument(2)),
        ("", (_JEQ, "", "refuse", 0)),
        ("", _argument(2, high=True)),
        ("", (_JEQ, "allow", "refuse", 0)),
        ("refuse", (_RET, "", "", _EPERM)),
        ("allow", (_RET, "", "", _ALLOW)),
    ]
    told = [(row[column], "refuse") for row in _TO_SERVE.values()]
    told += [(numbers[name], name) for name, _ in rules if name in numbers]
    chosen: list[Line] = [("", (_JEQ, target, "", number)) for number, target in told[:-1]]
    chosen.append(("", (_JEQ, told[-1][1], "allow", told[-1][0])))
    lines: list[Line] = [("", (_LD_W_ABS, "", "", _NR)), *chosen, *rules]
    places = {label: place for place, (label, _) in enumerate(lines) if label}

    def distance(target: str | int, place: int) -> int:
        return places[target] - place - 1 if isinstance(target, str) and target else 0

    return [
        (operation, distance(if_true, place), distance(if_false, place), constant)
        for place, (_, (operation, if_true, if_false, constant)) in enumerate(lines)
    ]
