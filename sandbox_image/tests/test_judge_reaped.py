"""How a run ended, from the kernel's own words to what the judge reads: nothing is made up, lost or left over."""

from __future__ import annotations

import os
import resource
import struct

import pytest

from deepcoder_sandbox.memory_file import MemoryFile
from deepcoder_sandbox.worker.packets import (
    CLEAN_AT,
    ENDED,
    RUSAGE_AT,
    SETUP_AT,
    STARVED_AT,
    WALL_AT,
    RunEnded,
    decode_ended,
)
from deepcoder_sandbox.worker.reap import Reaped


@pytest.fixture
def reaped() -> Reaped:
    reaped = Reaped()
    reaped.integers[CLEAN_AT] = 1
    for place, seconds in ((WALL_AT, 2.5), (STARVED_AT, 0.5), (SETUP_AT, 0.0)):
        reaped.floats[place] = seconds
    return reaped


def ended_child(reaped: Reaped, code: str) -> RunEnded:
    """How a child ended that ran the code."""
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", code], {})
    reaped.reap(pid)
    return decode_ended(bytes(reaped.packet))


def test_exit_status_is_told(reaped: Reaped) -> None:
    ended = ended_child(reaped, "exit 7")
    assert (ended.exit_status, ended.signal, ended.killed_for, ended.states) == (7, None, None, "")
    assert (ended.wall_s, ended.starved_s, ended.clean) == (2.5, 0.5, True)


def test_signal_is_told_and_nothing_of_the_run_before(reaped: Reaped) -> None:
    ended_child(reaped, "exit 7")
    reaped.integers[CLEAN_AT] = 0
    ended = ended_child(reaped, "kill -SEGV $$")
    assert (ended.exit_status, ended.signal, ended.clean) == (None, 11, False)


def test_cpu_time_and_memory_are_the_kernels(reaped: Reaped) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = ended_child(reaped, "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert ended.cpu_s == pytest.approx(cpu_s, abs=1e-5)
    assert ended.cpu_s > 0
    assert 100 < ended.max_rss_kb <= after.ru_maxrss


def test_user_and_system_time_are_added(reaped: Reaped) -> None:
    struct.pack_into("=5q", reaped.packet, RUSAGE_AT, 1, 250_000, 2, 500_000, 9_000)
    ended = decode_ended(bytes(reaped.packet))
    assert (ended.cpu_s, ended.max_rss_kb) == (3.75, 9_000)


def test_time_of_confining_is_no_time_of_the_program(reaped: Reaped) -> None:
    whole = ended_child(reaped, "exit 0")
    reaped.floats[SETUP_AT] = whole.cpu_s / 4
    assert decode_ended(bytes(reaped.packet)).cpu_s == pytest.approx(whole.cpu_s * 3 / 4)
    reaped.floats[SETUP_AT] = whole.cpu_s + 1.0  # the clocks differ by a tick
    assert decode_ended(bytes(reaped.packet)).cpu_s == 0.0


def test_what_a_run_was_ended_for_is_told(reaped: Reaped) -> None:
    ended_child(reaped, "exit 0")
    told = {why: decode_ended(reaped.packet_of_killed(why)) for why in ("cpu", "cancelled", "wall:RSD", "wall:")}
    assert {why: (ended.killed_for, ended.states) for why, ended in told.items()} == {
        "cpu": ("cpu", ""),
        "cancelled": ("cancelled", ""),
        "wall:RSD": ("wall", "RSD"),
        "wall:": ("wall", ""),
    }


def test_process_that_is_no_child_is_not_taken_for_one_that_has_ended(reaped: Reaped) -> None:
    with pytest.raises(ChildProcessError, match="no child"):
        reaped.reap(os.getpid())


@pytest.mark.parametrize(
    "packet",
    [b"", ENDED, b"0 0.1 0.2 0.0 9000 - 1", b"x" * 184, b"cancelled, twice"],
    ids=["empty", "cut", "fields", "another", "words"],
)
def test_packet_that_tells_no_end_is_refused(packet: bytes) -> None:
    with pytest.raises(ValueError, match="how a run ended"):
        decode_ended(packet)


def test_packet_whose_reason_is_no_text_is_refused(reaped: Reaped) -> None:
    with pytest.raises(ValueError, match="utf-8"):
        decode_ended(bytes(reaped.packet) + b"\xff")


@pytest.mark.parametrize(("length", "offset", "expected"), [(3, 2, b"cde"), (9, 4, b"ef"), (2, 9, b""), (0, 0, b"")])
def test_part_of_a_memory_file_is_read_and_no_more_than_is_there(length: int, offset: int, expected: bytes) -> None:
    with MemoryFile("test", b"abcdef") as file:
        assert file.content(length, offset) == expected
