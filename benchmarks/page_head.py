"""What a dated page says first: which commit was measured, and on what machine.

Two machines with as many cores may differ by a factor: in a virtual machine, an access whose translation is not cached
can take a hundred times as long as elsewhere, and what works on much memory (an API server, a learner) waits for that
alone. So the page has the price of such an access beside the cores. Outside a checkout the commit is `unknown`.
"""

from __future__ import annotations

import mmap
import os
import platform
import subprocess
import time
from pathlib import Path

_PAGES = 16384
"""More than any processor's translations of single pages, which are some thousands."""

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def commit() -> str:
    """What is checked out; to be asked at the start of what takes long, since it may change meanwhile."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return git.stdout.strip() or "unknown"


def machine() -> str:
    """Cores, kernel, Python, load and memory, to follow "Commit …, "; takes up to two seconds on a slow machine."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    first, later = _page_microseconds()
    return (
        f"{len(os.sched_getaffinity(0))} cores ({platform.machine()}), Linux {platform.release()}, Python"
        f" {platform.python_version()}; at the end load average {load}, huge pages {_huge_pages()}, and a byte in each"
        f" of {_PAGES:,} pages in turn took {first:.2f} µs a page when they were new, {later:.2f} later"
    )


def _page_microseconds() -> tuple[float, float]:
    """To write a byte to a page, with the loop about it: when nobody has touched it before, and at the third time."""
    with mmap.mmap(-1, _PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        times = []
        for value in range(3):
            began = time.perf_counter()
            for offset in range(0, len(memory), mmap.PAGESIZE):
                memory[offset] = value
            times.append((time.perf_counter() - began) / _PAGES * 1e6)
    return times[0], times[2]


def _huge_pages() -> str:
    """The kernel's mode, which its file has in brackets."""
    try:
        return _HUGE_PAGES.read_text().partition("[")[2].partition("]")[0] or "unknown"
    except OSError:
        return "unknown"
