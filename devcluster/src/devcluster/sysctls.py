"""Kernel settings of the whole machine that the kubelet changes: saved before, put back by `down`.

The file is written once for a life of the cluster: an `up` after a crash must not take the changed values for the
machine's own. A setting that this kernel lacks is left out.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

ROOT = Path("/proc/sys")
CHANGED_BY_KUBELET = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)


def save(path: Path, root: Path = ROOT) -> None:
    """Write the present values to `path` unless a life of the cluster has already done so."""
    if path.exists():
        return
    values = {name: (root / name).read_text().strip() for name in CHANGED_BY_KUBELET if (root / name).exists()}
    making = path.with_name(f".{path.name}.{os.getpid()}")
    with making.open("w") as handle:
        json.dump(values, handle)
        handle.flush()
        os.fsync(handle.fileno())
    making.rename(path)


def restore(path: Path, root: Path = ROOT) -> None:
    """Put the saved values back, those that differ, and forget them."""
    if not path.exists():
        return
    for name, value in json.loads(path.read_text()).items():
        if (root / name).read_text().strip() != value:
            (root / name).write_text(value)
    path.unlink()
