"""The number of threads of a process that computes."""

from __future__ import annotations

import os

from deepcoder_contracts.cpus import cpu_limit


def compute_threads(deterministic: bool, given: int | None = None) -> int:
    """Threads of a process that computes: as `given`, else as many as the container allows.

    With `deterministic`, 1: how a sum is split over threads decides its last bits, and the next pod may be allowed
    another number. Whoever needs more sets OMP_NUM_THREADS, to the same number for the whole of the run.
    """
    if not deterministic:
        return given or cpu_limit()
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return max(1, int(asked)) if asked.isdecimal() else 1
