"""The host files that a program may read: this Python's standard library, the libraries it links, and time zones.

Site packages are excluded, because the judge's own code is there. Only their names can be listed.
"""

from __future__ import annotations

import os
import sys
from os.path import dirname, exists, isdir, realpath

from deepcoder_sandbox.worker import landlock

DEVICES = ("/dev/null", "/dev/full", "/dev/random", "/dev/urandom")
"""Devices that programs may open. Not /dev/zero: mapped, it gives shared memory (`worker.seccomp` says why not)."""

OTHER_PACKAGES = ("site-packages", "dist-packages")
"""Directories inside the standard library that are not part of it."""


def stdlib_dir() -> str:
    """Return the directory of the standard library."""
    return dirname(realpath(os.__file__))


def library_dirs() -> list[str]:
    """Return the directories of the shared libraries, as the loader searches them."""
    machine = os.uname().machine
    candidates = ["/lib64", *(f"{root}/{machine}-linux-gnu" for root in ("/lib", "/usr/lib"))]
    return [path for path in candidates if isdir(path)]


def library_files() -> list[str]:
    """Return the shared libraries beside this Python (libpython of a Python that was built by hand)."""
    with os.scandir(f"{sys.base_prefix}/lib") as entries:
        return sorted(entry.path for entry in entries if ".so" in entry.name and entry.is_file())


def other_files() -> list[str]:
    """Return the rest: the loader's cache, the local time zone, the locale of every program's environment."""
    names = ("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo", "/usr/lib/locale/C.utf8")
    return [name for name in names if exists(name)]


def readable(packages: list[str], scratch: str | None) -> list[tuple[str, int]]:
    """Return (path, rights) of all that a program may open."""
    rules = _library_rules(stdlib_dir())
    for path in [*library_dirs(), *library_files(), *other_files(), *packages]:
        rules.append((path, landlock.READ))
    rules += [(device, landlock.READ_WRITE_FILE) for device in DEVICES]
    if scratch:
        rules.append((scratch, landlock.SCRATCH))
    return rules


def _library_rules(library: str) -> list[tuple[str, int]]:
    """Return rules for the whole standard library (fewer are faster), or without other packages in it."""
    with os.scandir(library) as entries:
        found = {entry.name: entry.path for entry in entries}
    if not any(name in found and any(os.scandir(found[name])) for name in OTHER_PACKAGES):
        return [(library, landlock.READ)]
    own = [(path, landlock.READ) for name, path in found.items() if name not in OTHER_PACKAGES]
    return [(library, landlock.LIST), *own]
