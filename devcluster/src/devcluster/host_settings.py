"""Settings of the machine that all clusters share: recorded by the first cluster, restored by the last.

Kernel settings and the cgroup controllers that the root delegates exist once per machine, and a second cluster finds
them already changed by the first. So the original values are recorded once, outside any cluster, under /run, which ends
with the boot as they do. A cluster exists as long as its cgroup does. Fails with LockTimeout, or without root with
PermissionError.
"""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from devcluster import cgroups, procfs, sysctls
from devcluster.file_lock import exclusive

NOTE = Path("/run/devcluster.json")
LOCK = Path("/run/devcluster.lock")
_LOCK_SECONDS = 60.0


def enter(cgroup: str) -> None:
    """Create the cgroup of a cluster, after recording on disk what this changes on the machine."""
    with _alone(f"making cgroup {cgroup}"):
        note = _read() or {"boot_id": procfs.boot_id(), "settings": sysctls.present(sysctls.ROOT), "controllers": []}
        note["controllers"] = sorted({*note["controllers"], *cgroups.controllers_to_enable()})
        _write(note)
        cgroups.create(cgroup)


def leave(cgroup: str) -> None:
    """Remove the empty cgroup of a cluster. After the last one, the machine is as it was before the first."""
    if not cgroups.exists(cgroup) and (cgroups.of_clusters() or not NOTE.exists()):
        return  # nothing is left to do, and checking that needs no rights
    with _alone(f"removing cgroup {cgroup}"):
        cgroups.remove(cgroup)
        if cgroups.of_clusters():
            return
        if (note := _read()) is not None:
            sysctls.restore(note["settings"], sysctls.ROOT)
            cgroups.disable_controllers(note["controllers"])
        NOTE.unlink(missing_ok=True)
        LOCK.unlink()


def _alone(what: str) -> AbstractContextManager[None]:
    return exclusive(LOCK, what, _LOCK_SECONDS)


def _read() -> dict[str, Any] | None:
    """The note of this boot, if there is one: settings in an older note no longer exist."""
    try:
        note: dict[str, Any] = json.loads(NOTE.read_text())
    except FileNotFoundError:
        return None
    return note if note["boot_id"] == procfs.boot_id() else None


def _write(note: dict[str, Any]) -> None:
    making = NOTE.with_name(f".{NOTE.name}.{os.getpid()}")
    with making.open("w") as handle:
        json.dump(note, handle)
        handle.flush()
        os.fsync(handle.fileno())
    making.rename(NOTE)
