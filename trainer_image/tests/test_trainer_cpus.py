"""Threads by what the container may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deepcoder_trainer.cpus import compute_threads, cpu_limit

ALL = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ALL),
        ({"cpu.max": "max 100000\n"}, ALL),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, ALL),
        ({"cpu/cpu.cfs_quota_us": "90000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu.max": "100000000 100000\n"}, ALL),
    ],
)
def test_the_limit_is_the_smaller_of_quota_and_affinity(files: dict[str, str], expected: int, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_limit(tmp_path) == expected


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
