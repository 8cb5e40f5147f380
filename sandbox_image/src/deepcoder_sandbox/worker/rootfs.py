"""The minimal root that programs see in the namespaces tier: this Python, its libraries, a few devices, /proc, /tmp.

It is built once per zygote, in a separate mount namespace, from bind mounts over a small tmpfs, and then entered with
pivot_root. After that no path leads to the host. Everything is read-only except /tmp, whose size is limited.
"""

from __future__ import annotations

import os
from os import listdir, rmdir, unlink  # by name: LiveCodeBench's harness takes the others out of the module
from os.path import dirname, isdir, islink

from deepcoder_sandbox.worker import libc, readable_files

SCRATCH = "/tmp"  # noqa: S108  # the one writable directory, of the new root
"""Where programs may write."""

SCRATCH_MB = 64
"""Its size, in MiB."""

_BUILD_AT = "/sys"  # hidden by the mount in our own namespace only; no source lies beneath
_MAX_FILES = 4096
_LOCKED = libc.MS_NOSUID | libc.MS_NODEV


def enter(packages: list[str]) -> None:
    """Build the root and enter it. Needs a mount namespace of its own and the right to mount."""
    libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
    libc.mount("tmpfs", _BUILD_AT, "tmpfs", _LOCKED, "size=1m,mode=755")
    for name in ("lib", "lib64", "bin"):
        if islink(f"/{name}"):
            linked = os.readlink(f"/{name}")
            os.makedirs(f"{_BUILD_AT}/{linked.lstrip('/')}", exist_ok=True)
            os.symlink(linked, f"{_BUILD_AT}/{name}")
    for source in _sources(packages):
        _bind(source)
    for package_dir in _hidden():
        libc.mount("tmpfs", _BUILD_AT + package_dir, "tmpfs", libc.MS_RDONLY | _LOCKED, "size=4k,mode=755")
    for device in readable_files.DEVICES:
        _bind(device, device=True)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(f"/proc/self/{target}", f"{_BUILD_AT}/dev/{name}")
    _mount_new("/proc", "proc", "subset=pid")
    _mount_new(SCRATCH, "tmpfs", f"size={SCRATCH_MB}m,nr_inodes={_MAX_FILES},mode=1777")
    os.chdir(_BUILD_AT)
    libc.pivot_root(".", ".")
    libc.umount(".", libc.MNT_DETACH)
    os.chdir("/")
    libc.mount("none", "/", None, libc.MS_REMOUNT | libc.MS_BIND | libc.MS_RDONLY | _LOCKED)


def _sources(packages: list[str]) -> list[str]:
    """Return what to bind, outer before inner. Raises ValueError for what the scratch directory would hide."""
    if hidden := [path for path in packages if f"{path}/".startswith(f"{SCRATCH}/")]:
        raise ValueError(f"packages: {hidden[0]} lies in {SCRATCH}, where programs have one of their own: move it")
    library = {dirname(os.__file__), readable_files.stdlib_dir()}
    found = [
        *library,
        *readable_files.library_dirs(),
        *readable_files.library_files(),
        *readable_files.other_files(),
        *packages,
    ]
    return sorted(set(found))


def _hidden() -> list[str]:
    """Return directories of other packages in the standard library."""
    candidates = [f"{readable_files.stdlib_dir()}/{name}" for name in readable_files.OTHER_PACKAGES]
    return [path for path in candidates if isdir(path)]


def _bind(source: str, device: bool = False) -> None:
    target = _BUILD_AT + source
    if isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT, 0o644))
    libc.mount(source, target, None, libc.MS_BIND)
    flags = libc.MS_REMOUNT | libc.MS_BIND | libc.MS_NOSUID
    flags |= libc.MS_NOEXEC if device else libc.MS_RDONLY | libc.MS_NODEV
    if os.statvfs(target).f_flag & os.ST_NOEXEC:
        flags |= libc.MS_NOEXEC
    libc.mount("none", target, None, flags)


def _mount_new(target: str, kind: str, data: str) -> None:
    os.mkdir(_BUILD_AT + target)
    libc.mount(kind, _BUILD_AT + target, kind, _LOCKED | libc.MS_NOEXEC, data)


def empty_scratch() -> None:
    """Remove whatever a program left in the scratch directory. Raises OSError or RecursionError if it cannot."""
    if not listdir(SCRATCH):  # the usual case
        return
    with os.scandir(SCRATCH) as entries:
        for entry in entries:
            _remove(entry)


def _remove(entry: os.DirEntry[str]) -> None:
    if not entry.is_dir(follow_symlinks=False):
        unlink(entry.path)
        return
    with os.scandir(entry.path) as entries:
        for beneath in entries:
            _remove(beneath)
    rmdir(entry.path)
