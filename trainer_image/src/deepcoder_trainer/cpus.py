"""The number of threads of a process that computes."""

from __future__ import annotations

import os

from deepcoder_contracts.cpus import cpu_limit


def compute_threads(deterministic: bool, given: int | None = None) -> int:
    """Return the number of compute threads: `given`, or the container's CPU limit.

    With `deterministic` it is 1, because the split of a sum over threads changes its last bits, and the next pod may
    have another limit. To use more threads, set OMP_NUM_THREADS to the same number for the whole run.
    """
    if not deterministic:
        return given or cpu_limit()
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return max(1, int(asked)) if asked.isdecimal() else 1
