"""How many threads a process may use: what the container is allowed, not what the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def cpu_limit(cgroup: Path = _CGROUP) -> int:
    """CPUs this process may use, at least 1: the smaller of its affinity and its cgroup's quota, rounded up."""
    available = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return max(1, available if quota is None else min(available, math.ceil(quota)))


def compute_threads(deterministic: bool, given: int | None = None) -> int:
    """Threads of a process that computes: as `given`, else as many as the container allows.

    With `deterministic`, 1: how a sum is split over threads decides its last bits, and the next pod may be allowed
    another number. Whoever needs more sets OMP_NUM_THREADS, to the same number for the whole of the run.
    """
    if not deterministic:
        return given or cpu_limit()
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return max(1, int(asked)) if asked.isdecimal() else 1


def _quota(cgroup: Path) -> float | None:
    """CPUs by the cgroup's quota (version 2, then 1); None without one."""
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
