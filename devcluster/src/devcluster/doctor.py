"""Reports all problems at once that prevent a machine from running the cluster, each with its fix.

`inspect` looks at the machine and returns facts; `problems` is pure and decides. Run before `build` and `up` too.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from devcluster import cgroups, ocilayout, wheels
from devcluster.artifacts import Artifacts
from devcluster.command import CommandFailed, run
from devcluster.config import DOCKERFILES, GO_MINOR, IMAGE_PREFIX

_GIB = 1 << 30
# The cache holds the trainer image three times: built, exported, unpacked. With the registry's build of torch and its
# CUDA libraries it has 7 GB, with a CPU wheel 2.8 GB. The caches of Go and uv come on top.
_DISK_FOR_CACHE = 26 * _GIB
_DISK_FOR_CACHE_WITH_CPU_WHEEL = 14 * _GIB
_DISK_FOR_GO_AND_UV = 16 * _GIB
_DISK_FOR_GO_AND_UV_WITH_CPU_WHEEL = 10 * _GIB
_DISK_TO_RUN = 5 * _GIB
_MEMORY_NEEDED = 7 * _GIB
_KERNEL_NEEDED = (5, 10)
_PROGRAMS_NEEDED = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "perl": "perl",
    "tar": "tar",
    "nice": "coreutils",
}
_FILESYSTEMS_NEEDED = ("overlay", "proc", "tmpfs")
_CONTROLLERS_NEEDED = ("cpu", "cpuset", "memory", "pids")
"""The kubelet does not start without the first three, with cgroup v1 and v2 alike."""
_PATH_LETTERS = re.compile(r"[A-Za-z0-9._/+@-]*")
"""All other characters have a meaning in lists of paths, mount options or shells."""


@dataclass(frozen=True)
class Place:
    """A directory that a build writes to, and the variable that chooses another."""

    path: Path
    variable: str


@dataclass(frozen=True)
class Facts:
    """What `problems` judges; sizes in bytes, `go_version` as `go env GOVERSION` prints it or empty."""

    root: bool
    machine: str
    debian_version: str
    kernel: tuple[int, int]
    go_version: str
    free_disk: int
    disk_needed: int
    memory: int
    cache: Path
    missing_programs: tuple[str, ...]
    missing_filesystems: tuple[str, ...]
    bridge_netfilter: bool
    missing_controllers: tuple[str, ...]
    cgroups_writable: bool
    read_only: tuple[Place, ...]
    taken_ports: tuple[int, ...]


def problems(facts: Facts) -> list[str]:
    """What must be fixed first, one sentence each; empty if the machine is suitable."""
    found: list[str] = []
    if not facts.root:
        found.append("not root: namespaces, mounts and cgroups of the node need it. Run with sudo, or as root")
    if facts.machine != "x86_64":
        found.append(
            f"machine is {facts.machine}: the packaged kubectl and helm are x86_64 programs. Use such a machine"
        )
    if not facts.debian_version.startswith("12"):
        found.append(
            f"system is not Debian 12 (VERSION_ID is {facts.debian_version or 'unknown'}): runc, buildah and the CNI"
            " plugins are unpacked from its packages and use its libraries. Use a Debian 12 machine or container"
        )
    if facts.kernel < _KERNEL_NEEDED:
        found.append(f"kernel {facts.kernel[0]}.{facts.kernel[1]} is older than 5.10. Use a newer kernel")
    found += _go_problems(facts.go_version)
    if facts.free_disk < facts.disk_needed:
        found.append(
            f"{facts.free_disk / _GIB:.0f} GiB free for {facts.cache}, {facts.disk_needed / _GIB:.0f} GiB needed."
            " Free some, or set DEEPCODER_CACHE to a directory on another disk"
        )
    if facts.memory < _MEMORY_NEEDED:
        found.append(
            f"{facts.memory / _GIB:.1f} GiB of memory, {_MEMORY_NEEDED / _GIB:.0f} GiB needed. Use a bigger machine"
        )
    if {"var", "run", "proc", "sys"} & set(facts.cache.parts[1:2]):
        found.append(
            f"the cache {facts.cache} is in a directory that the node replaces with its own."
            " Set DEEPCODER_CACHE to a directory outside /var, /run, /proc and /sys"
        )
    if not _PATH_LETTERS.fullmatch(str(facts.cache)):
        found.append(
            f"the path of the cache {facts.cache} has a space or another character that mounts and lists of paths do"
            " not accept. Set DEEPCODER_CACHE to a directory of letters, digits and ._+@-"
        )
    found += [
        f"{place.path} is not writable: its file system is read-only, or it belongs to another user."
        f" Set {place.variable} to a directory that is writable"
        for place in facts.read_only
    ]
    if facts.missing_programs:
        packages = sorted({_PROGRAMS_NEEDED[name] for name in facts.missing_programs})
        found.append(f"missing {', '.join(facts.missing_programs)}. Run: apt-get install {' '.join(packages)}")
    found += [f"the kernel lacks the {name} file system. Run: modprobe {name}" for name in facts.missing_filesystems]
    if not facts.bridge_netfilter:
        found.append("bridged traffic does not pass the packet filter, so Services fail. Run: modprobe br_netfilter")
    if facts.missing_controllers:
        found.append(
            f"the cgroup controllers {', '.join(facts.missing_controllers)} are not mounted under /sys/fs/cgroup,"
            " neither v1 nor v2. Mount them, or boot with cgroup_enable=memory if the kernel has disabled that one"
        )
    elif not facts.cgroups_writable:
        found.append(
            "/sys/fs/cgroup is read-only, as in a container. Start the container with --privileged and"
            " --cgroupns=host, or use the machine itself"
        )
    found += [
        f"port {port} on 127.0.0.1 is taken by another program. Stop it, or choose another port:"
        " devcluster up --api-port PORT, devcluster install --s3-port PORT"
        for port in facts.taken_ports
    ]
    return found


def _go_problems(version: str) -> list[str]:
    if not version:
        return [f"Go is not installed. Install Go {GO_MINOR} and put its bin directory on PATH"]
    minor = re.match(r"go(\d+\.\d+)", version)
    if minor is not None and minor[1] == GO_MINOR:
        return []
    reason = (
        "an API server built with Go 1.27 serves malformed OpenAPI, and kubectl refuses what it should apply"
        if minor is not None and minor[1] == "1.27"
        else "the cluster's programs are built and tested only with that version"
    )
    return [f"Go is {version}, {GO_MINOR} is needed: {reason}. Install Go {GO_MINOR} and put it first on PATH"]


def inspect(cache: Path, ports: tuple[int, ...] = ()) -> Facts:
    """Look at this machine; `ports` are those on which the cluster will listen and does not listen yet."""
    kernel = re.match(r"(\d+)\.(\d+)", platform.release())
    known = Path("/proc/filesystems").read_text().split()
    installed_go = go_version()
    mounted = cgroups.hierarchies()
    return Facts(
        root=os.geteuid() == 0,
        machine=platform.machine(),
        debian_version=_debian_version(),
        kernel=(int(kernel[1]), int(kernel[2])) if kernel else (0, 0),
        go_version=installed_go,
        free_disk=shutil.disk_usage(_existing(cache)).free,
        disk_needed=_disk_needed(cache, installed_go),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        cache=cache,
        missing_programs=tuple(name for name in _PROGRAMS_NEEDED if shutil.which(name) is None),
        missing_filesystems=tuple(name for name in _FILESYSTEMS_NEEDED if name not in known),
        bridge_netfilter=Path("/proc/sys/net/bridge").is_dir(),
        missing_controllers=tuple(sorted(set(_CONTROLLERS_NEEDED) - cgroups.controllers(mounted))),
        cgroups_writable=all(os.access(hierarchy.mount, os.W_OK) for hierarchy in mounted),
        read_only=tuple(place for place in _written(cache, installed_go) if not _can_be_written(place.path)),
        taken_ports=tuple(port for port in ports if _taken(port)),
    )


def _disk_needed(cache: Path, installed_go: str) -> int:
    """Bytes still to be written, less what earlier runs have left here and in the caches of Go and uv."""
    if _all_exported(cache):
        return _DISK_TO_RUN
    cpu = any("+cpu" in wheel.name for wheel in wheels.found(cache))
    ours = [cache / place for place in ("buildah", "oci", "containerd", "bin")]
    needed = _lacking(ours, _DISK_FOR_CACHE_WITH_CPU_WHEEL if cpu else _DISK_FOR_CACHE)
    if Artifacts(cache, installed_go).missing():
        needed += _lacking(
            [place.path for place in _tool_caches()], _DISK_FOR_GO_AND_UV_WITH_CPU_WHEEL if cpu else _DISK_FOR_GO_AND_UV
        )
    return max(_DISK_TO_RUN, needed)


def _written(cache: Path, installed_go: str) -> list[Place]:
    """Where a build writes: the cache, and if a program is not built yet, the tools' caches."""
    tools = _tool_caches() if Artifacts(cache, installed_go).missing() else []
    return [Place(cache, "DEEPCODER_CACHE"), *tools]


def _tool_caches() -> list[Place]:
    """The caches of Go and uv."""
    uv = os.environ.get("UV_CACHE_DIR") or f"{os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'}/uv"
    found = [Place(Path(uv), "UV_CACHE_DIR")]
    with contextlib.suppress(FileNotFoundError, CommandFailed):
        names = ("GOCACHE", "GOMODCACHE")
        said = run(["go", "env", *names], deadline=30, cwd=Path("/")).split("\n")
        found += [Place(Path(path), name) for name, path in zip(names, said, strict=False) if path]
    return found


def _existing(path: Path) -> Path:
    """The path itself, or the nearest existing folder above it."""
    return next(place for place in (path, *path.parents) if place.exists())


def _can_be_written(path: Path) -> bool:
    return os.access(_existing(path), os.W_OK | os.X_OK)


def _lacking(places: list[Path], whole: int) -> int:
    """Bytes of `whole` that are not in `places` yet. Each file counts once; files that vanish meanwhile do not."""
    present = 0
    linked: set[tuple[int, int]] = set()
    for place in places:
        for folder, _, files in os.walk(place):
            for name in files:
                with contextlib.suppress(OSError):
                    found = os.lstat(os.path.join(folder, name))  # noqa: PTH118 - of hundreds of thousands
                    if (found.st_dev, found.st_ino) in linked:
                        continue
                    linked.add((found.st_dev, found.st_ino))
                    present += found.st_blocks * 512
            if present >= whole:
                return 0
    return whole - present


def _all_exported(cache: Path) -> bool:
    """Whether the OCI layout has every image of the project. It is the last large thing that a build makes."""
    try:
        exported = {reference.rpartition(":")[0] for reference in ocilayout.references(cache / "oci")}
    except ocilayout.NotInLayout:
        return False
    return exported >= {f"{IMAGE_PREFIX}{name}" for name in DOCKERFILES}


def go_version() -> str:
    """Version of the Go on PATH, such as go1.26.8; empty if there is none."""
    try:
        return run(["go", "env", "GOVERSION"], deadline=30, env={"GOTOOLCHAIN": "local"}, cwd=Path("/")).strip()
    except (FileNotFoundError, CommandFailed):
        return ""


def _debian_version() -> str:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return ""
    return release.get("VERSION_ID", "") if release.get("ID") == "debian" else ""


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
