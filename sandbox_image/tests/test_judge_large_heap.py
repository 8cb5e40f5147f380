"""A zygote's heap lies on large pages, where the kernel has some; otherwise an interpreter works as it did."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from large_pages import NEEDS_LARGE_PAGES

from deepcoder_contracts.judge import Tier
from deepcoder_sandbox import limits
from deepcoder_sandbox.worker import large_heap
from deepcoder_sandbox.zygote_process import ZygoteConfig, ZygoteProcess

_AT_WORK = """
import sys
from deepcoder_sandbox.worker import large_heap
large_heap.reserve()
from deepcoder_sandbox.worker import libc
if sys.argv[1] == "without":
    libc.advise = lambda address, length, advice: False
places = list(large_heap._places)
import decimal, json, os

def large_kib():
    with open("/proc/self/smaps") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))

texts = [str(index) * 3 for index in range(20_000)]
tables = [dict.fromkeys(range(200)) for _ in range(20)]
before = large_kib()
large_heap.use_large_pages()
after = large_kib()
def lies_there(each):
    return any(place <= id(each) < place + large_heap.LARGE for place in places)
there = sum(map(lies_there, texts)) / len(texts)
pid = os.fork()
if pid == 0:
    texts.reverse()
    os._exit(len(set(texts)) == 20_000 and sum(map(len, tables)) == 4_000)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
del texts, tables
again = [[number] * 20 for number in range(50_000)]
total = sum(map(sum, again)) + int(decimal.Decimal(7))
print(json.dumps({"places": len(places), "large_kib": after - before, "there": there, "total": total}))
"""
_GONE = """
from deepcoder_sandbox.worker import large_heap, libc
room = libc.map_memory(2 * large_heap.LARGE)
libc.unmap(room, 2 * large_heap.LARGE)
large_heap._places.append(-(-room // large_heap.LARGE) * large_heap.LARGE)
large_heap.use_large_pages()
print("lives on")
"""
_TOTAL = 20 * sum(range(50_000)) + 7


def _at_work(large_pages: str = "with", **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-c", _AT_WORK, large_pages]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


KNOWN_ALLOCATORS = pytest.mark.skipif(
    sys.implementation.name != "cpython"
    or platform.libc_ver()[0] != "glibc"
    or not large_heap.is_of_use(platform.release()),
    reason="knows the allocators of CPython and of the GNU C library, on Linux 6.9",
)


@KNOWN_ALLOCATORS
@NEEDS_LARGE_PAGES
def test_objects_made_after_the_reservation_lie_on_large_pages() -> None:
    told = _at_work()

    assert told["places"] >= 2
    assert told["large_kib"] == told["places"] * large_heap.LARGE >> 10
    assert told["there"] > 0.9
    assert told["total"] == _TOTAL


def test_without_large_pages_an_interpreter_works_as_before() -> None:
    told = _at_work("without")

    assert told["large_kib"] == 0
    assert told["total"] == _TOTAL


def test_a_place_whose_memory_is_gone_since_ends_no_zygote() -> None:
    done = subprocess.run([sys.executable, "-c", _GONE], capture_output=True, text=True, timeout=120, check=False)

    assert (done.returncode, done.stdout) == (0, "lives on\n"), done.stderr


@pytest.mark.parametrize(
    ("release", "of_use"),
    [
        ("6.9.0", True),
        ("6.18.44-fc", True),
        ("7.0.1", True),
        ("6.8.0-31-generic", False),
        ("4.4.0", False),
        ("", False),
    ],
)
def test_nothing_is_reserved_on_kernels_that_copy_a_large_pages_entries_one_by_one(release: str, of_use: bool) -> None:
    assert large_heap.is_of_use(release) is of_use


def test_with_another_allocator_of_small_objects_nothing_is_reserved_for_them() -> None:
    told = _at_work(PYTHONMALLOC="malloc")

    assert told["places"] <= 1
    assert told["total"] == _TOTAL


@KNOWN_ALLOCATORS
@NEEDS_LARGE_PAGES
@pytest.mark.parametrize("tier", [Tier.UNCONFINED, Tier.LANDLOCK, Tier.NAMESPACES])
@pytest.mark.parametrize("harness", [False, True])
def test_more_than_half_of_a_zygotes_memory_lies_on_large_pages_before_its_first_run(tier: Tier, harness: bool) -> None:
    zygote = ZygoteProcess(ZygoteConfig(tier=tier, harness=harness))
    try:
        pid = zygote.pid
        within = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        smaps = Path(f"/proc/{within[0] if within else pid}/smaps").read_text()
    finally:
        zygote.close()
    kib = {
        kind: sum(int(count) for count in re.findall(rf"^{kind}: +(\d+) kB$", smaps, re.MULTILINE))
        for kind in ("Anonymous", "AnonHugePages")
    }

    assert kib["AnonHugePages"] > kib["Anonymous"] / 2, smaps


@pytest.mark.parametrize("tier", [Tier.LANDLOCK, Tier.NAMESPACES])
def test_the_zygotes_of_a_slot_fit_into_what_is_reckoned_for_them(tier: Tier) -> None:
    zygotes = [ZygoteProcess(ZygoteConfig(tier=tier, harness=harness)) for harness in (False, True)]
    try:
        pids = [zygote.pid for zygote in zygotes]
        for pid in tuple(pids):
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        rollups = "".join(Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids)
    finally:
        for zygote in zygotes:
            zygote.close()
    kib = sum(map(int, re.findall(r"^Pss_Anon: +(\d+) kB$", rollups, re.MULTILINE)))

    assert kib <= limits.ZYGOTES_MB << 10
