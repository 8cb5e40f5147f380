"""The cluster's cgroup in every mounted hierarchy: made by `up`, emptied and removed by `down`.

Works with cgroup v2 and with the v1 hierarchies. Every process of the cluster starts in it and cannot leave it by
forking, so that killing what it holds ends the cluster even when every record is lost. Fails with TimeoutError when
processes survive SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from devcluster.config import CGROUP_PREFIX

_V2_CONTROLLERS = ("cpu", "cpuset", "memory", "pids", "hugetlb")

_WEIGHTS = (("cpu.weight", "1000"), ("cpu.shares", "10240"))
"""Ten times the default, in v2 and in v1. By default all pods together get two thirds of two busy processors, and the
API server, etcd and the kubelet share the rest: then probes fail, and leaders lose their Leases."""


@dataclass(frozen=True)
class Hierarchy:
    """One mounted cgroup hierarchy; `controllers` is empty for v2 and for v1's named ones."""

    mount: Path
    version: int
    controllers: frozenset[str] = frozenset()


def parse_mounts(mountinfo: str) -> list[Hierarchy]:
    """The hierarchies in the text of /proc/self/mountinfo, each once."""
    found: dict[Path, Hierarchy] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        mount = Path(before.split()[4])
        if kind == "cgroup2":
            found[mount] = Hierarchy(mount, 2)
        elif kind == "cgroup":
            named = {word for word in options.split(",") if word.startswith("name=")}
            found[mount] = Hierarchy(mount, 1, frozenset() if named else frozenset(options.split(",")) - {"rw", "ro"})
    return list(found.values())


def hierarchies() -> list[Hierarchy]:
    """The hierarchies mounted on this machine."""
    return parse_mounts(Path("/proc/self/mountinfo").read_text())


def unified(found: list[Hierarchy]) -> bool:
    """Whether the machine runs on cgroup v2 alone."""
    return all(hierarchy.version == 2 for hierarchy in found)


def controllers(found: list[Hierarchy]) -> set[str]:
    """All usable controllers: for v1 those that are mounted, for v2 those that the root offers."""
    known = {controller for hierarchy in found for controller in hierarchy.controllers}
    for hierarchy in found:
        if hierarchy.version == 2:
            known |= set((hierarchy.mount / "cgroup.controllers").read_text().split())
    return known


def create(name: str) -> None:
    """Create cgroup `name` in every hierarchy."""
    found = hierarchies()
    for hierarchy in found:
        group = hierarchy.mount / name
        group.mkdir(exist_ok=True)
        if hierarchy.version == 2 and unified(found):
            for place in (hierarchy.mount, group):
                for controller in _V2_CONTROLLERS:
                    _switch(place, f"+{controller}")


def controllers_to_enable() -> set[str]:
    """Controllers that `create` still has to enable in the machine's root cgroup; none with v1."""
    found = hierarchies()
    if not unified(found):
        return set()
    offered, enabled = (
        set((found[0].mount / file).read_text().split()) for file in ("cgroup.controllers", "cgroup.subtree_control")
    )
    return (offered & set(_V2_CONTROLLERS)) - enabled


def disable_controllers(controllers: Collection[str]) -> None:
    """Disable controllers in the root again; one that a child has passed on meanwhile stays enabled."""
    for controller in controllers:
        _switch(hierarchies()[0].mount, f"-{controller}")


def of_clusters() -> set[str]:
    """Names of the cgroups of all clusters on this machine, for all caches."""
    groups = (group for hierarchy in hierarchies() for group in hierarchy.mount.glob(f"{CGROUP_PREFIX}*"))
    return {group.name for group in groups if group.is_dir()}


def join(name: str) -> None:
    """Move the calling process into the cgroup of the node's own processes, which go before those of its pods."""
    for mount in _joined(hierarchies()):
        group = mount / name / "node"
        group.mkdir(exist_ok=True)
        for file, weight in _WEIGHTS:
            if (group / file).exists():
                (group / file).write_text(weight)
        (group / "cgroup.procs").write_text(str(os.getpid()))


def processes(name: str) -> set[int]:
    """Pids in cgroup `name` and below, in any hierarchy."""
    found: set[int] = set()
    for hierarchy in hierarchies():
        for procs in (hierarchy.mount / name).rglob("cgroup.procs"):
            with contextlib.suppress(FileNotFoundError, OSError):
                found |= {int(word) for word in procs.read_text().split()}
    return found - {0}


def kill(name: str, wait_seconds: float = 30.0) -> None:
    """SIGKILL everything in cgroup `name` until it is empty."""
    deadline = time.monotonic() + wait_seconds
    while alive := processes(name):
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"cgroup {name}: processes {sorted(alive)} are still there {wait_seconds:.0f} s after SIGKILL"
            )
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def remove(name: str, wait_seconds: float = 10.0) -> None:
    """Remove the emptied cgroup `name` from every hierarchy."""
    deadline = time.monotonic() + wait_seconds
    for hierarchy in hierarchies():
        root = hierarchy.mount / name
        while root.is_dir():
            for directory in sorted([root, *(path for path in root.rglob("*") if path.is_dir())], reverse=True):
                with contextlib.suppress(OSError):  # dying processes keep a group busy for some milliseconds
                    directory.rmdir()
            if root.is_dir():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"cgroup {root} cannot be removed: something in it is still busy")
                time.sleep(0.05)


def exists(name: str) -> bool:
    """Whether any hierarchy has cgroup `name`."""
    return any((hierarchy.mount / name).is_dir() for hierarchy in hierarchies())


def _switch(place: Path, word: str) -> None:
    """Enable a controller for the children of a cgroup, or disable it."""
    with contextlib.suppress(OSError):  # the kernel lacks it, and the kubelet says what it needs; or it is in use
        (place / "cgroup.subtree_control").write_text(word)


def _joined(found: list[Hierarchy]) -> list[Path]:
    """Hierarchies for the node's own processes: v2 if there is nothing else, otherwise each v1 controller but cpuset.

    A v1 cpuset accepts no process until it has processors, and these processes need not be confined to any.
    """
    if unified(found):
        return [found[0].mount]
    return [entry.mount for entry in found if entry.controllers and "cpuset" not in entry.controllers]
