"""How a zygote lies in memory: what is moved and joined, and that an interpreter works on as it did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from large_pages import NEEDS_LARGE_PAGES

from deepcoder_sandbox.worker import memory_layout
from deepcoder_sandbox.worker.memory_layout import Mapping

_PAGE = 1 << 12
_LIBRARY = [
    Mapping(1 * _PAGE, 2 * _PAGE, "r--p", "/lib/a.so"),
    Mapping(2 * _PAGE, 4 * _PAGE, "r-xp", "/lib/a.so"),
    Mapping(4 * _PAGE, 5 * _PAGE, "r--p", "/lib/a.so"),
]
_AT_WORK = """
import json, sys
from deepcoder_sandbox.worker import memory_layout, libc

def large_kib():
    with open("/proc/self/smaps") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))

if sys.argv[1] == "none":
    libc.advise = lambda address, length, advice: False
before = memory_layout.mappings()
memory_layout.move_text()
memory_layout.join()
import decimal, zlib  # libraries that come later
total = sum((i & 1023) ** 2 % 7 for i in range(100_000)) + zlib.crc32(b"text") + int(decimal.Decimal(7))
after = memory_layout.mappings()
print(json.dumps({"total": total, "large_kib": large_kib(), "before": len(before), "after": len(after)}))
"""


def test_constants_and_text_of_one_library_belong_together() -> None:
    written = Mapping(5 * _PAGE, 6 * _PAGE, "rw-p", "/lib/a.so")
    other = Mapping(6 * _PAGE, 7 * _PAGE, "r--p", "/lib/b.so")
    memory = Mapping(7 * _PAGE, 8 * _PAGE, "r--p", "")
    apart = Mapping(9 * _PAGE, 10 * _PAGE, "r--p", "/lib/b.so")

    assert memory_layout.constant_parts([*_LIBRARY, written, other, memory, apart]) == [_LIBRARY, [other], [apart]]


@pytest.mark.parametrize("large_pages", ["some", "none"])
def test_an_interpreter_that_was_moved_works_as_before(large_pages: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _AT_WORK, large_pages], capture_output=True, text=True, timeout=120, check=True
    )
    told = json.loads(done.stdout)

    assert told["total"] == sum((i & 1023) ** 2 % 7 for i in range(100_000)) + 999_008_199 + 7
    assert told["after"] < told["before"]
    if large_pages == "none":
        assert told["large_kib"] == 0


@NEEDS_LARGE_PAGES
def test_text_lies_on_large_pages_where_there_are_some() -> None:
    if not any(
        part[-1].end // memory_layout.LARGE > -(-part[0].start // memory_layout.LARGE)
        for part in memory_layout.constant_parts(memory_layout.mappings())
        if "python" in Path(part[0].name).name
    ):
        pytest.skip("this interpreter fills no large page")
    done = subprocess.run(
        [sys.executable, "-c", _AT_WORK, "some"], capture_output=True, text=True, timeout=120, check=True
    )

    assert json.loads(done.stdout)["large_kib"] >= memory_layout.LARGE >> 10
