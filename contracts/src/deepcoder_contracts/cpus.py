"""How many CPUs a process may use: its container's limit, not the machine's number.

Trainer and judge use it as the default number of threads or programs. A quota that cannot be read counts as no quota.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def cpu_limit(cgroup: Path = _CGROUP) -> int:
    """Return the number of CPUs that this process may use: the smaller of its affinity and its cgroup's quota, rounded
    up, and at least 1."""
    available = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return max(1, available if quota is None else min(available, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """Return the cgroup's CPU quota (version 2, then 1), or None if it has none."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((cgroup / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((cgroup / "cpu/cpu.cfs_period_us").read_text())
        return None if quota_us < 0 else quota_us / period_us
    except (OSError, ValueError):
        return None
