"""A judge that cannot keep what it promises does not start: exit status 64, what did not hold, and the mend.

Kernels without Landlock are played by a filter that answers its first system call as they do. Defects of the judge's
own are played by copies of it with one line changed, so each attack is seen to find what it is there to find.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import deepcoder_sandbox
from deepcoder_contracts.judge import Tier
from deepcoder_sandbox import attack, attack_limits, tiers, zygote_process
from deepcoder_sandbox.execution import Execution
from deepcoder_sandbox.slot import Slot
from deepcoder_sandbox.worker import libc, syscalls
from deepcoder_sandbox.worker.packets import RunEnded
from deepcoder_sandbox.zygote_process import ZygoteConfig, ZygoteFailed, ZygoteProcess

WITHOUT_LANDLOCK = """
import ctypes, os, struct, sys
error, machine = int(sys.argv[1]), os.uname().machine
arch = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]
code = b"".join(struct.pack("<HBBI", *each) for each in [
    (0x20, 0, 0, 4), (0x15, 0, 3, arch), (0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x00050000 | error),
    (0x06, 0, 0, 0x7FFF0000),
])
room = ctypes.create_string_buffer(code, len(code))
header = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(code) // 8, ctypes.addressof(room)))
libc = ctypes.CDLL(None)
libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.addressof(header), 0, 0) == 0
os.execv(sys.executable, [sys.executable, "-m", "deepcoder_sandbox", *sys.argv[2:]])
"""
ENOSYS, EOPNOTSUPP = 38, 95


def run(*command, **environment):
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=50, env={**os.environ, **environment}
    )


KINDS = pytest.mark.parametrize("harness", [False, True], ids=["plain", "livecodebench"])


@KINDS
def test_every_property_holds_in_every_tier(slot, harness):
    findings = attack.attack(slot.ensure_zygote(harness))
    assert findings.broken == []
    for name, group in syscalls.GROUPS.items():
        assert group.attacked_as, name
        assert set(group.attacked_as) <= set(findings.limits), name


@KINDS
def test_attack_on_a_limit_waits_for_that_limit_alone(any_slot, harness):
    program, limits, _ = attack_limits.ATTACKS["wall_time"]
    took_s = []
    while not took_s or (took_s[-1] >= 1.0 and len(took_s) < 20):  # a busy machine may be late to look
        ended = attack._run(any_slot.ensure_zygote(harness), program, b"", limits).ended
        assert ended.killed_for == "wall"
        took_s.append(ended.wall_s)
    assert took_s[-1] < 1.0, f"it waits each time for the look at a session, a second later: {took_s}"


@KINDS
def test_memory_that_a_large_program_does_not_compile_in_is_enough_for_a_small_one(any_slot, harness):
    _, limits, _ = attack_limits.ATTACKS["compile_memory"]
    small = "x = 1\n" * 1000 + "print('compiled')"
    run = attack._run(any_slot.ensure_zygote(harness), small, b"", limits)
    assert run.stdout == b"compiled\n", "the attack that prints nothing fails by its size, and not by its start"


@pytest.mark.parametrize("directory", ["/tmp", "/"])  # the image's home is /tmp
def test_tier_holds_wherever_the_judge_is_at_home(slot, monkeypatch, directory):
    monkeypatch.chdir(directory)
    monkeypatch.setenv("HOME", directory)
    assert attack.attack(slot.ensure_zygote()).broken == []


@KINDS
def test_attacks_are_real_and_succeed_without_confinement_and_leave_no_file_here(harness, monkeypatch):
    monkeypatch.setattr(attack.secrets, "token_hex", lambda size: f"of-{os.getpid()}")
    zygote = ZygoteProcess(ZygoteConfig(tier=Tier.UNCONFINED, harness=harness))
    try:
        findings = attack.attack(zygote)
    finally:
        zygote.kill()
    assert findings.broken == []  # the resource limits hold without any confinement
    assert findings.most_memory_mb == zygote.most_memory_mb
    left = [place for place in ("/", "/tmp", "/dev/shm") if Path(place, f"deepcoder-of-{os.getpid()}").exists()]
    assert not left, "what an attack could write is removed again"
    open_to_all = {name for name, held in findings.limits.items() if not held}
    assert open_to_all >= {
        *(
            "network",
            "processes",
            "execution",
            "signals",
            "secret_files",
            "own_sigkill",
            "shared_memory",
            "shared_pages",
            "file_changes",
        ),
        *(
            "signal_timers",
            "deadly_limits",
            "descriptor_signals",
            "descriptor_memory",
            "device_controls",
            "other_calls",
        ),
        *("process_options", "scheduling", "memory_files", "left_behind", "foreign_calls"),
        *("host_files", "host_writes", "other_processes", "pidfd", "message_queues", "kernel_waits"),
        "not_dumpable",
    }
    status = Path("/proc/self/status").read_text()
    assert findings.limits["system_call_filter"] == ("Seccomp:\t2" in status), "a pod's own filter is one, too"


@pytest.mark.parametrize("error", [ENOSYS, EOPNOTSUPP])  # older than 5.13; compiled in, but not in the lsm list
def test_kernel_without_landlock_is_unconfined_and_refused_by_default(error):
    refused = run("-c", WITHOUT_LANDLOCK, str(error), "capacity")
    assert refused.returncode == 64, refused
    assert "--minimum-tier Landlock is not available here" in refused.stderr
    assert "Landlock needs Linux 5.13 or newer with landlock in its lsm list" in refused.stderr
    accepted = run("-c", WITHOUT_LANDLOCK, str(error), "capacity", "--minimum-tier", "Unconfined")
    assert accepted.returncode == 0, accepted
    assert accepted.stdout.splitlines()[0] == "Unconfined"
    assert "secret_files         NOT enforced" in accepted.stdout


def test_same_kernel_with_landlock_is_accepted():
    accepted = run("-m", "deepcoder_sandbox", "capacity")
    assert accepted.returncode == 0, accepted
    assert accepted.stdout.splitlines()[0] in ("Landlock", "Namespaces")
    assert "NOT enforced" not in accepted.stdout


AS = "setrlimit(RLIMIT_AS, (address_space, address_space))"
FSIZE = "setrlimit(RLIMIT_FSIZE, (file_bytes, file_bytes))"
NO_LIMIT = "1 << 40, 1 << 40"
UID = '"getuid": (102, 174),'
FCNTLS = "*(1032, 1033, 1034),"
SCRATCH = "    if scratch:\n"
FORK_HOOKS = "os.register_at_fork = posix.register_at_fork"
OPEN_FILES = "(resource.RLIMIT_NOFILE, OPEN_FILES),"

DEFECTS = {
    "network": ("worker/syscalls.py", UID, f'{UID} "socket": (41, 198), "socketpair": (53, 199),'),
    "host_files": ("worker/readable_files.py", SCRATCH, f'    rules.append(("/etc", landlock.READ))\n{SCRATCH}'),
    "processes": (
        "worker/seccomp.py",
        '(_JSET, "", "refuse", _CLONE_THREAD)',
        '(_JSET, "", "allow", _CLONE_THREAD)',
    ),
    "descriptor_tables": (
        "worker/seccomp.py",
        '(_JSET, "allow", "refuse", _CLONE_FILES)',
        '(_JSET, "allow", "allow", _CLONE_FILES)',
    ),
    "own_sigkill": ("worker/seccomp.py", '(_JEQ, "refuse", "", _SIGKILL)', '(_JEQ, "", "", _SIGKILL)'),
    "signals": ("worker/seccomp.py", '(_JEQ, "allow", "refuse", _OWN_PID)', '(_JEQ, "allow", "allow", _OWN_PID)'),
    "other_calls": ("worker/seccomp.py", 'told = [(row[column], "refuse") for', 'told = [(row[column], "allow") for'),
    "descriptor_signals": ("worker/seccomp.py", FCNTLS, f"{FCNTLS} *(8, 10, 15, 1024, 1026),"),
    "descriptor_memory": ("worker/seccomp.py", FCNTLS, f"{FCNTLS} 1031,"),
    "shared_pages": ("worker/seccomp.py", "*_without(3, _MAP_ANONYMOUS, _EPERM)", "(_RET, 0, 0, _ALLOW)"),
    "kernel_waits": ("worker/seccomp.py", "_NEW_NAMESPACES | _CLONE_VFORK", "_NEW_NAMESPACES"),
    "file_changes": ("worker/syscalls.py", UID, f'{UID} "fchmod": (91, 52),'),
    "file_changes by opening": ("worker/seccomp.py", "(_JSET, 0, 3, _O_TRUNC)", "(_JSET, 3, 3, _O_TRUNC)"),
    "queued_signals": ("worker/confine.py", "RLIMIT_SIGPENDING, QUEUED_SIGNALS", "RLIMIT_SIGPENDING, 1 << 40"),
    "not_dumpable": ("worker/libc.py", "PR_SET_DUMPABLE = 4", "PR_SET_DUMPABLE = 3"),
    "memory": ("worker/confine.py", AS, f"setrlimit(RLIMIT_AS, ({NO_LIMIT}))"),
    "output": ("worker/confine.py", FSIZE, f"setrlimit(RLIMIT_FSIZE, ({NO_LIMIT}))"),
    "threads": ("worker/thread_gate.py", "MAX_THREADS = 128", "MAX_THREADS = 4096"),
    "open_files": ("worker/confine.py", OPEN_FILES, OPEN_FILES.replace("OPEN_FILES", "4096")),
    "descriptors": ("worker/confine.py", "closerange(descriptors, kept)", "closerange(kept, kept)"),
    "host_writes": (
        "worker/readable_files.py",
        SCRATCH,
        f'    rules += [(place, landlock.SCRATCH) for place in ("/tmp", "/dev/shm")]\n{SCRATCH}',
    ),
    "other_processes": ("worker/readable_files.py", SCRATCH, f'    rules.append(("/proc", landlock.READ))\n{SCRATCH}'),
    "environment": ("worker/boot.py", FORK_HOOKS, f'{FORK_HOOKS}; os.environ["TOKEN"] = "x"'),
}
"""Property to the file, the line and what becomes of it."""


def with_defect(directory, name, line, changed):
    """Put a copy of the judge with that line changed into `directory`."""
    copy = directory / "deepcoder_sandbox"
    being_written = shutil.ignore_patterns("*.pyc.*")
    shutil.copytree(Path(deepcoder_sandbox.__file__).parent, copy, ignore=being_written)
    text = (copy / name).read_text()
    assert text.count(line) == 1, f"{name} has changed: adapt this test"
    (copy / name).write_text(text.replace(line, changed))


@pytest.mark.parametrize("broken", DEFECTS)
def test_defect_of_the_judge_is_found_by_its_own_attack(tmp_path, monkeypatch, broken):
    with_defect(tmp_path, *DEFECTS[broken])
    monkeypatch.setattr(zygote_process, "package_root", lambda: str(tmp_path))
    zygote = ZygoteProcess(ZygoteConfig(tier=Tier.LANDLOCK))
    try:
        assert broken.split()[0] in attack.attack(zygote).broken
    finally:
        zygote.kill()


@pytest.mark.parametrize("name", attack_limits.ATTACKS)
def test_program_that_gets_past_a_limit_counts_as_not_held(name):
    said = b"1000" if name == "queued_signals" else b"got it, all written, opened, made, compiled"
    died_of = signal.SIGKILL if name == "own_sigkill" else 0
    ended = RunEnded(died_of, 0.1, 0.1, 0.0, max_rss_kb=1, killed_for=None, clean=True)
    assert attack_limits.ATTACKS[name][2](Execution(ended, said, b"", written_bytes=2 << 20, stderr=b"")) is False


def test_judge_whose_attack_finds_a_defect_does_not_serve(tmp_path):
    with_defect(tmp_path, *DEFECTS["network"])
    socket = tmp_path / "judge.sock"
    refused = run("-m", "deepcoder_sandbox", "serve", "--socket", str(socket), PYTHONPATH=str(tmp_path))
    assert refused.returncode == 64, refused
    assert not socket.exists()
    assert "Landlock: not enforced: network" in refused.stderr


@pytest.fixture
def tier_refused(tmp_path, monkeypatch):
    """Put a defect into the code of zygotes; return why the judge finds no tier that holds."""

    def find(name, line, changed):
        with_defect(tmp_path, name, line, changed)
        monkeypatch.setattr(zygote_process, "package_root", lambda: str(tmp_path))
        with pytest.raises(tiers.TierRefused) as refused:
            tiers.find_tier(ZygoteConfig(), Tier.LANDLOCK)
        return str(refused.value)

    return find


@pytest.mark.parametrize("kind", ["", "not "], ids=["livecodebench", "plain"])
def test_defect_of_one_kind_of_zygote_alone_is_found(tier_refused, kind):
    line = "system_calls=system_calls,"
    reasons = tier_refused("worker/boot.py", line, f"system_calls=None if {kind}config['harness'] else system_calls,")
    assert re.search(r"Landlock: not enforced: [\w, ]*own_sigkill", reasons)


@pytest.mark.parametrize(
    ("instead", "reason"),
    [("pass", "Landlock: not enforced: .*network"), ('raise OSError("not taken")', "OSError: not taken")],
    ids=["forgotten", "refused by the kernel"],
)
def test_zygote_that_does_not_load_its_filter_is_refused(tier_refused, instead, reason):
    assert re.search(reason, tier_refused("worker/boot.py", "system_calls.inherited.load(0)", instead))


def test_kinds_of_zygotes_that_are_not_confined_alike_are_refused(tier_refused):
    line = '"thread_gate": gate is not None'
    assert "zygotes are not alike" in tier_refused("worker/boot.py", line, '"thread_gate": not config["harness"]')


FEWER_LATER = """
import pathlib
if pathlib.Path({mark!r}).exists():
    from deepcoder_sandbox.worker import libc
    def refuse(*_): raise OSError(16, "Device or resource busy")
    {change}
"""
LATER = {
    "thread_gate is False and not True": "libc.seccomp_listener = refuse",
    "landlock_abi is 1 and not ": "libc.landlock_abi = lambda: 1",
}


@pytest.mark.parametrize("shortfall", LATER)
def test_later_zygote_that_is_confined_by_less_does_not_start(tmp_path, monkeypatch, shortfall):
    if "abi" in shortfall and libc.landlock_abi() < 2:
        pytest.skip("the kernel has the least that there is")
    mark = tmp_path / "mark"
    (tmp_path / "fewer_later.py").write_text(FEWER_LATER.format(mark=str(mark), change=LATER[shortfall]))
    monkeypatch.setattr(tiers, "STRONGEST_FIRST", (Tier.LANDLOCK,))
    asked = ZygoteConfig(packages=(str(tmp_path),), preload=("fewer_later",))
    config, findings = tiers.find_tier(asked, Tier.LANDLOCK)
    assert findings.broken == []
    slot = Slot(config, worker="test")
    for harness in (False, True):
        slot.ensure_zygote(harness)
    slot.close()
    mark.touch()
    for harness in (False, True):
        with pytest.raises(ZygoteFailed, match=f"confined by less than the zygotes that were attacked: {shortfall}"):
            slot.ensure_zygote(harness)
