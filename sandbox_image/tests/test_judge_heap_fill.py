"""What a copy of a zygote allocates first lies together, whatever was freed before."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

_POOLS = """
import json, random
from deepcoder_sandbox.worker import heap_fill

POOL = 1 << 14
made = [heap_fill._of_size(SIZE) for _ in range(5000)]
pools = {}
for each in made:
    pools.setdefault(id(each) // POOL, []).append(each)
del made, each
by_fill = sorted(pools.values(), key=len)
del pools
FREED
del by_fill
heap_fill.fill_holes()
first = [None] * 20  # a list that grows would take some for itself
for index in range(20):
    first[index] = heap_fill._of_size(SIZE)
print(json.dumps([id(each) for each in first]))
"""
_FREED = {
    "nothing": "pass",
    "one of each pool": "for pool in by_fill: pool.pop(len(pool) // 2)",
    "whole pools, the first of each last": """
for whole in by_fill[::2]:  # an arena without any pool in use is given back
    while len(whole) > 1: whole.pop(random.randrange(1, len(whole)))
    whole.pop()
del whole""",
}


_AGAIN = """
import json
from deepcoder_sandbox.worker import heap_fill
heap_fill.fill_holes()
before = len(heap_fill._taken)
heap_fill.fill_holes()
taken = heap_fill._taken[before:]
print(json.dumps({size: sum(each.__sizeof__() + 15 & ~15 == size for each in taken) for size in heap_fill._SMALL}))
"""

CPYTHON = pytest.mark.skipif(sys.implementation.name != "cpython", reason="knows CPython's allocator")


def _told_by(code: str) -> Any:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout)


@CPYTHON
@pytest.mark.parametrize("freed", _FREED)
def test_what_is_allocated_after_the_holes_are_filled_lies_side_by_side(freed: str) -> None:
    addresses = _told_by(f"SIZE = 320\n{_POOLS.replace('FREED', _FREED[freed])}")

    assert max(addresses) - min(addresses) < (20 + 3) * 320, addresses  # but for what filling gave back itself


@CPYTHON
def test_where_no_hole_is_left_filling_takes_some_pages_of_each_size_and_ends() -> None:
    taken = _told_by(_AGAIN)

    # what is left of one pool, and one or two more of which the beginning may lie between two looks
    assert {size: count for size, count in taken.items() if not 0 < count * int(size) < 6 << 14} == {}
