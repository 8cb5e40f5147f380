"""Kernel settings of the whole machine that the kubelet changes: reads them, and restores them.

A setting that this kernel lacks is left out. Fails with PermissionError without root.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def present(root: Path) -> dict[str, str]:
    """The current values by name."""
    return {name: (root / name).read_text().strip() for name in CHANGED_BY_KUBELET if (root / name).exists()}


def restore(values: Mapping[str, str], root: Path) -> None:
    """Restore the values that differ."""
    for name, value in values.items():
        if (root / name).read_text().strip() != value:
            (root / name).write_text(value)
