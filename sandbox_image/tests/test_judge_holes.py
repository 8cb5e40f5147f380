"""What a copy of a zygote allocates first lies together, whatever was freed before."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_POOLS = """
import json, random
from deepcoder_sandbox.worker import holes

SIZE, POOL = 320, 1 << 14
made = [holes._of_size(SIZE, 0) for _ in range(5000)]
pools = {}
for each in made:
    pools.setdefault(id(each) // POOL, []).append(each)
del made, each
by_fill = sorted(pools.values(), key=len)
del pools
FREED
del by_fill
holes.fill()
first = [None] * 20  # a list that grows would take some for itself
for index in range(20):
    first[index] = holes._of_size(SIZE, 0)
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


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="knows CPython's allocator")
@pytest.mark.parametrize("freed", _FREED)
def test_what_is_allocated_after_the_holes_are_filled_lies_side_by_side(freed: str) -> None:
    code = _POOLS.replace("FREED", _FREED[freed])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    addresses = json.loads(done.stdout)

    assert max(addresses) - min(addresses) < (20 + 3) * 320, addresses  # but for what filling gave back itself
