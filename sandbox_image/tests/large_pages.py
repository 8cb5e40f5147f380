"""Whether the kernel has pages of 2 MiB to give, without which some tests have nothing to look at."""

from __future__ import annotations

import ctypes

import pytest

from deepcoder_sandbox.worker import libc
from deepcoder_sandbox.worker.large_heap import LARGE


def _has_some() -> bool:
    room = libc.map_memory(2 * LARGE)
    assert room is not None
    first = -(-room // LARGE) * LARGE
    ctypes.memset(first, 1, LARGE)
    has_some = libc.advise(first, LARGE, libc.MADV_COLLAPSE)
    libc.unmap(room, 2 * LARGE)
    return has_some


NEEDS_LARGE_PAGES = pytest.mark.skipif(not _has_some(), reason="the kernel has no large pages to give")
