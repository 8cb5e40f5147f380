"""A recorded process is told apart from another that got its pid; cgroups are read as they are."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from devcluster import cgroups, procfs
from devcluster.command import CommandFailed, run
from devcluster.file_lock import LockTimeout, exclusive
from devcluster.kubectl import wait_for
from devcluster.procfs import ProcessId

Sleeper = subprocess.Popen[bytes]


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def test_a_process_is_found_again_by_its_record(tmp_path: Path, sleeper: Sleeper) -> None:
    identity = ProcessId.of(sleeper.pid)
    assert identity is not None
    procfs.save(tmp_path / "record.json", identity)
    assert procfs.load(tmp_path / "record.json") == identity
    assert identity.alive()


@pytest.mark.parametrize("change", [{"start_ticks": 1}, {"boot_id": "another boot"}])
def test_a_reused_pid_is_neither_alive_nor_killed(sleeper: Sleeper, change: dict[str, object]) -> None:
    identity = ProcessId.of(sleeper.pid)
    assert identity is not None
    stranger = replace(identity, **change)  # type: ignore[arg-type]
    assert not stranger.alive()
    stranger.kill()
    assert sleeper.poll() is None


def test_a_zombie_is_not_alive(sleeper: Sleeper) -> None:
    identity = ProcessId.of(sleeper.pid)
    assert identity is not None
    identity.kill()  # returns once it is a zombie: this test is its parent and has not waited for it
    assert not identity.alive()
    assert Path(f"/proc/{sleeper.pid}").exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"pid": "x"}', '{"pid": 1, "start_ti'])
def test_a_damaged_record_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "record.json").write_text(content)
    assert procfs.load(tmp_path / "record.json") is None


def test_cgroup_hierarchies_of_both_versions_are_told_apart() -> None:
    mountinfo = """\
30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/pids rw,relatime shared:3 - cgroup cgroup rw,pids
33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""
    found = {str(hierarchy.mount): hierarchy for hierarchy in cgroups.parse_mounts(mountinfo)}
    assert {path: hierarchy.version for path, hierarchy in found.items()} == {
        "/sys/fs/cgroup/cpu": 1,
        "/sys/fs/cgroup/pids": 1,
        "/sys/fs/cgroup/systemd": 1,
        "/sys/fs/cgroup/unified": 2,
    }
    assert found["/sys/fs/cgroup/cpu"].controllers == {"cpu", "cpuacct"}
    assert not cgroups.unified(list(found.values()))
    assert cgroups.unified(cgroups.parse_mounts("31 24 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"))


def _cpu_weight(group: str) -> int:
    """By which a cgroup shares the processors with its siblings; both versions count from different defaults."""
    found = [
        hierarchy.mount / group / file
        for hierarchy in cgroups.hierarchies()
        for file in ("cpu.shares", "cpu.weight")
        if (hierarchy.mount / group / file).exists()
    ]
    if not found:
        pytest.skip("this machine's cgroups do not share out processors")
    return int(found[0].read_text())


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: cgroups")
def test_the_nodes_own_processes_go_before_those_of_its_pods() -> None:
    """With equal weights, busy pods leave the API server too little to renew a Lease in time."""
    name = f"dc-weights-{os.getpid()}"
    cgroups.create(name)
    try:
        subprocess.run(
            [sys.executable, "-c", f"from devcluster import cgroups; cgroups.join({name!r})"], check=True, timeout=30
        )
        for hierarchy in cgroups.hierarchies():
            (hierarchy.mount / name / "kubepods").mkdir()
        assert _cpu_weight(f"{name}/node") == 10 * _cpu_weight(f"{name}/kubepods")
    finally:
        cgroups.remove(name)


def test_a_failed_program_shows_its_last_words() -> None:
    with pytest.raises(CommandFailed, match="exit code 3\nno such thing"):
        run(["sh", "-c", "echo no such thing >&2; exit 3"], deadline=30)


def test_a_program_past_its_deadline_is_killed_with_its_children(tmp_path: Path) -> None:
    told = tmp_path / "child"
    for deadline in (0.5, 5, 50):
        with pytest.raises(CommandFailed, match="not done after"):
            run(["sh", "-c", f"sleep 600 & echo $! > {told}; wait"], deadline=deadline)
        if told.exists() and told.read_text():  # else the machine was too slow for it to have a child
            break
    child = ProcessId.of(int(told.read_text()))
    wait_for("the child to die of its SIGKILL", lambda: child is None or not child.alive(), 30)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a process namespace")
def test_what_a_contained_program_started_ends_with_us_even_by_sigkill(tmp_path: Path) -> None:
    """Also what has left the process group and lost its parent, as the steps of an image's build have."""
    marker = f"600.{os.getpid()}"
    inner = f"setsid sh -c 'sleep {marker} & sleep {marker}' & wait"
    code = f"from devcluster.command import run; run(['sh', '-c', {inner!r}], deadline=600, contained=True)"
    tool = subprocess.Popen([sys.executable, "-c", code])

    def sleepers() -> list[int]:
        processes = (int(path.name) for path in procfs.PROC.glob("[0-9]*"))
        return [pid for pid in processes if procfs.command_line(pid) == ["sleep", marker]]

    try:
        wait_for("both to sleep", lambda: len(sleepers()) == 2, 30)
        tool.kill()
        tool.wait()
        wait_for("both to be gone", lambda: sleepers() == [], 30)
    finally:
        for pid in sleepers():
            os.kill(pid, signal.SIGKILL)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a process namespace")
def test_a_contained_program_says_and_ends_as_any_other() -> None:
    assert run(["sh", "-c", "cat; echo $$"], deadline=30, stdin=b"said ", contained=True) == "said 1\n"
    with pytest.raises(CommandFailed, match=r"^sh -c .*: exit code 3\nno such thing"):
        run(["sh", "-c", "echo no such thing >&2; exit 3"], deadline=30, contained=True)


def test_a_lock_names_its_holder_and_is_free_again_after_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    second = exclusive(lock, "starting", wait_seconds=0)
    holder = rf"process {os.getpid()} \(building\)"
    with exclusive(lock, "building"), pytest.raises(LockTimeout, match=holder), second:
        pass
    with exclusive(lock, "starting", wait_seconds=0):
        pass


def test_who_waited_for_a_lock_that_its_holder_removed_holds_the_one_that_is_there_now(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    waits, holds = threading.Event(), threading.Event()

    def second() -> None:
        waits.set()
        with exclusive(lock, "second", wait_seconds=30):
            holds.set()
            over.wait(30)

    over = threading.Event()
    thread = threading.Thread(target=second)
    with exclusive(lock, "first"):
        thread.start()
        waits.wait(30)
        time.sleep(0.3)  # it has the file open, and waits
        lock.unlink()
    assert holds.wait(30)
    third = exclusive(lock, "third", wait_seconds=0)
    with pytest.raises(LockTimeout, match="second"), third:
        pass
    over.set()
    thread.join()
