"""Threads of what computes: what the container allows, or one where bits have to be the same."""

from __future__ import annotations

import pytest

from deepcoder_contracts.cpus import cpu_limit
from deepcoder_trainer.cpus import compute_threads


@pytest.mark.parametrize(
    ("variable", "threads"), [(None, 1), ("3", 3), ("4,2", 4), ("0", 1), ("many", 1)], ids=lambda v: str(v)
)
def test_a_deterministic_process_has_one_thread_unless_it_is_told(
    variable: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert compute_threads(deterministic=True) == threads
    assert compute_threads(deterministic=True, given=7) == threads, "what a container allows does not count"
    assert compute_threads(deterministic=False, given=7) == 7
    assert compute_threads(deterministic=False) == cpu_limit()
