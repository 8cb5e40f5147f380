"""The system call filter, run by a small BPF interpreter: every number, for both machines, without loading it."""

import re
from pathlib import Path

import pytest

from deepcoder_sandbox.worker import seccomp, syscalls

ALLOW, KILL, EPERM, ENOSYS, ENOTTY = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026, 0x00050019
EINVAL, EOPNOTSUPP, DONE = 0x00050016, 0x0005005F, 0x00050000
PID = 4711
MACHINES = sorted(syscalls.AUDIT_ARCH)


def one_answer(program, arch, number, *arguments):
    """What one filter returns for a call."""
    words = [number, arch, 0, 0]
    for argument in (*arguments, *[0] * (6 - len(arguments))):
        argument &= (1 << 64) - 1
        words += [argument & 0xFFFFFFFF, argument >> 32]
    at, accumulator = 0, 0
    while True:
        operation, if_true, if_false, constant = program[at]
        constant = PID if isinstance(constant, seccomp._Pid) else constant
        at += 1
        if operation == 0x20:
            accumulator = words[constant // 4]
        elif operation == 0x06:
            return constant
        elif operation == 0x54:
            accumulator &= constant
        else:
            holds = {0x15: accumulator == constant, 0x35: accumulator >= constant, 0x45: bool(accumulator & constant)}
            at += if_true if holds[operation] else if_false


def of_runner(machine):
    return seccomp.assemble_inherited(machine), seccomp.assemble_own(machine)


def answer(programs, arch, number, *arguments):
    """What the kernel makes of the answers of several filters: the strictest counts."""
    answers = [one_answer(program, arch, number, *arguments) for program in programs]
    return KILL if KILL in answers else min(answers)


@pytest.fixture(params=MACHINES)
def call(request):
    machine = request.param
    programs, arch = of_runner(machine), syscalls.AUDIT_ARCH[machine]
    numbers = syscalls.allowed_numbers(machine)
    return lambda name, *arguments: answer(programs, arch, numbers.get(name, name), *arguments)


@pytest.mark.parametrize("machine", MACHINES)
def test_every_number_is_decided_as_the_table_says(machine):
    programs, arch = of_runner(machine), syscalls.AUDIT_ARCH[machine]
    allowed = set(syscalls.allowed_numbers(machine).values())
    for number in range(syscalls.NEWEST_KNOWN + 1):
        given = answer(programs, arch, number)
        assert given != KILL
        if number not in allowed:
            assert given == EPERM, number
    assert answer(programs, arch, syscalls.NEWEST_KNOWN + 1) == ENOSYS
    assert answer(programs, arch, 0x40000000) == EPERM
    assert answer(programs, arch, 0xFFFFFFFF) == EPERM
    assert answer(programs, 0x40000003, 1) == KILL


def test_no_call_is_allowed_twice_and_every_rule_is_for_a_call_that_is():
    names = [name for group in syscalls.GROUPS.values() for name in group.calls]
    assert len(names) == len(set(names))
    assert set(seccomp._rules(0)) <= set(names)


def test_threads_are_allowed_processes_and_namespaces_are_not(call):
    thread = 0x3D0F00
    assert call("clone", thread) == ALLOW
    assert call("clone", thread & ~0x400) == EPERM  # with descriptors of its own, and another limit on their number
    assert call("clone", 17) == EPERM
    assert call("clone", 0x4111) == EPERM
    for namespace in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x80):
        assert call("clone", thread | namespace) == EPERM
    assert call("clone3") == ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_no_call_makes_a_program_wait_in_the_kernel_as_long_as_it_likes(machine):
    programs, arch = of_runner(machine), syscalls.AUDIT_ARCH[machine]
    numbers = syscalls.allowed_numbers(machine)

    def call(name, *arguments):
        return answer(programs, arch, numbers[name], *arguments)

    assert call("clone", 0x3D0F00 | 0x4000) == EPERM  # CLONE_VFORK: until the new thread ends
    past_the_cache, directory = {"x86_64": (0o40000, 0o200000), "aarch64": (0o200000, 0o40000)}[machine]
    assert call("openat", -100, 0, 0o2000000 | past_the_cache) == EINVAL
    assert call("openat", -100, 0, 0o2000000 | directory) == ALLOW
    assert call("fcntl", 0, 4, past_the_cache) == EINVAL
    assert call("fcntl", 0, 4, 0o4000) == ALLOW
    if "open" in numbers:
        assert call("open", 0, past_the_cache) == EINVAL
        assert call("open", 0, directory) == ALLOW
    for name in ("preadv2", "pwritev2"):
        assert call(name, 0, 0, 0, 0, 0, 0) == ALLOW
        assert call(name, 0, 0, 0, 0, 0, 0x80) == EOPNOTSUPP  # RWF_DONTCACHE
    for advice in range(128):
        wanted = ALLOW if advice in (0, 1, 2, 3, 4, 8, 10, 11, 14, 15, 16, 17, 18, 19) else EINVAL
        assert call("madvise", 0, 0, advice) == wanted, advice
    for name in ("fsync", "fdatasync", "msync"):
        assert call(name) == DONE


@pytest.mark.parametrize(("name", "flags_at"), [("open", 1), ("openat", 2)])
def test_file_is_emptied_only_by_opening_it_for_writing(name, flags_at):
    programs, arch = of_runner("x86_64"), syscalls.AUDIT_ARCH["x86_64"]
    reading, writing, both, neither, truncate, create = 0, 1, 2, 3, 0o1000, 0o100

    def opened(flags):
        arguments = [0, 0, 0]
        arguments[flags_at] = flags | 0o2000000
        return answer(programs, arch, syscalls.allowed_numbers("x86_64")[name], *arguments)

    for flags in (reading, writing, both, neither, writing | truncate, both | truncate | create):
        assert opened(flags) == ALLOW, flags
    for flags in (reading | truncate, neither | truncate, reading | truncate | create):
        assert opened(flags) == EPERM, flags


def test_memory_that_outlives_its_mapping_is_refused(call):
    private, shared, validated, anonymous, fixed = 2, 1, 3, 0x20, 0x10
    for kind in (private | anonymous, private, shared, validated, private | anonymous | fixed | 0x4000):
        assert call("mmap", 0, 4096, 3, kind, 5) == ALLOW
    for kind in (shared | anonymous, validated | anonymous, shared | anonymous | fixed):
        assert call("mmap", 0, 4096, 3, kind, -1) == EPERM


@pytest.mark.parametrize(("name", "signal_at"), [("kill", 1), ("tgkill", 2)])
def test_signals_go_to_the_own_process_alone_and_never_sigkill(call, name, signal_at):
    def sent(pid, number):
        arguments = [pid, 0, 0]
        arguments[signal_at] = number
        return call(name, *arguments)

    assert sent(PID, 15) == ALLOW
    assert sent(PID, 0) == ALLOW
    assert sent(PID, 9) == EPERM
    assert sent(PID, 19) == EPERM
    for pid in (0, 1, -1, -PID, PID + 1):
        assert sent(pid, 15) == EPERM


RLIMIT_CPU, RLIMIT_SIGPENDING, RLIMIT_RTTIME = 0, 11, 15


def test_limits_may_be_read_and_some_lowered_but_none_that_kills_and_none_of_others(call):
    assert call("prlimit64", 0, 0, 0, 1) == ALLOW
    assert call("prlimit64", 0, 3, 0x7F0000000000, 0) == ALLOW
    assert call("prlimit64", 0, 0, 0x7F0000000000, 0) == EPERM
    assert call("prlimit64", 0, 0, 0x100000000, 0) == EPERM
    assert call("prlimit64", PID + 1, 3, 0, 0) == EPERM
    for limit in (RLIMIT_CPU, RLIMIT_SIGPENDING, RLIMIT_RTTIME):
        assert call("prlimit64", 0, limit, 0x7F0000000000, 0) == EPERM
        assert call("prlimit64", 0, limit, 0x100000000, 0) == EPERM
        assert call("prlimit64", 0, limit, 0, 1) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_zygote_may_serve_and_do_nothing_else_that_a_program_may_not(machine):
    column, arch = syscalls.machine_column(machine), syscalls.AUDIT_ARCH[machine]
    inherited, numbers = [seccomp.assemble_inherited(machine)], syscalls.allowed_numbers(machine)
    to_serve = {row[column] for row in seccomp._TO_SERVE.values()}
    assert to_serve.isdisjoint(numbers.values())
    for number in range(syscalls.NEWEST_KNOWN + 1):
        given = answer(inherited, arch, number)
        assert (given == ALLOW) if number in to_serve else (number in numbers.values() or given == EPERM), number
    assert answer(inherited, arch, numbers["clone"], 0x1200011) == ALLOW  # fork
    assert answer(inherited, arch, numbers["clone"], 0x10000000 | 0x1200011) == EPERM
    assert answer(inherited, arch, numbers["kill"], -1, 9) == ALLOW
    assert answer(inherited, arch, numbers["prlimit64"], 0, RLIMIT_CPU, 1, 0) == ALLOW
    assert answer(inherited, arch, numbers["prlimit64"], 0, RLIMIT_RTTIME, 1, 0) == EPERM


def test_part_of_a_runner_alone_is_short_since_every_test_loads_it():
    for machine in MACHINES:
        assert len(seccomp.assemble_own(machine)) <= 40


@pytest.mark.parametrize("machine", MACHINES)
def test_posix_timers_which_can_deliver_any_signal_are_refused(machine):
    programs, arch = of_runner(machine), syscalls.AUDIT_ARCH[machine]
    for number in {"x86_64": range(222, 227), "aarch64": range(107, 112)}[machine]:
        assert answer(programs, arch, number) == EPERM


def test_descriptors_can_be_copied_and_marked_but_send_no_signals_and_take_no_kernel_memory(call):
    signals, locks, pipe_size, hints = (8, 10, 15, 1024, 1026), (5, 6, 7, 36, 37, 38), 1031, (1035, 1036, 1037, 1038)
    for command in (*signals, *locks, pipe_size, *hints, 1 << 31):
        assert call("fcntl", 1, command) == EPERM
    for command in (0, 1, 2, 3, 4, 1030, 1032, 1033, 1034):
        assert call("fcntl", 1, command) == ALLOW


def test_table_of_descriptors_whose_number_is_limited_stays_the_only_one(call):
    assert call("close_range", 3, 64, 0) == ALLOW
    assert call("close_range", 3, 64, 4) == ALLOW  # CLOSE_RANGE_CLOEXEC
    for flags in (2, 6):
        assert call("close_range", 3, 64, flags) == EPERM


def test_terminals_and_process_options_are_out_of_reach(call):
    assert call("ioctl", 0, 0x5401) == ALLOW
    assert call("ioctl", 0, 0x5412) == ENOTTY
    assert call("prctl", 15) == ALLOW
    for option in (3, 21, 39):  # which only tell
        assert call("prctl", option) == ALLOW
    for option in (1, 4, 22, 36, 38):
        assert call("prctl", option) == EPERM


def test_unknown_machine_is_refused():
    with pytest.raises(syscalls.UnsupportedMachine, match="riscv64"):
        seccomp.assemble_inherited("riscv64")


HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),  # which arm64 takes as it is
}
NUMBERED = re.compile(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", re.MULTILINE)
RENAMED = re.compile(r"^#define __NR_(\w+)\s+__NR3264_(\w+)$", re.MULTILINE)


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_are_those_of_the_kernels_own_headers(machine):
    if not HEADERS[machine].exists():
        pytest.skip(f"{HEADERS[machine]} is not installed (Debian: linux-libc-dev)")
    text = HEADERS[machine].read_text()
    known = {name: int(number) for name, number in NUMBERED.findall(text)}
    for name, old in RENAMED.findall(text):
        if old in known:
            known.setdefault(name, known[old])
    ours = syscalls.allowed_numbers(machine)
    assert {name: known[name] for name in ours} == ours
    assert {name: known[name] for name in seccomp._TO_SERVE} == {
        name: row[syscalls.machine_column(machine)] for name, row in seccomp._TO_SERVE.items()
    }
    column = syscalls.machine_column(machine)
    missing = {name for group in syscalls.GROUPS.values() for name, row in group.calls.items() if row[column] is None}
    assert missing & known.keys() == set()
