"""Every limit in one place: its value, what it means for each scoring, and what follows for memory.

How long all tests may take together, and how long the judge waits for them, is part of the protocol
(`deepcoder_contracts.judge_time`). Pure; nothing here fails. `deepcoder_sandbox.pod_memory` checks what fits into a
container.
"""

from __future__ import annotations

from typing import Final

from deepcoder_contracts.judge import MAX_BODY_BYTES
from deepcoder_contracts.judge_time import WALL_PER_CPU as WALL_PER_CPU
from deepcoder_contracts.judge_time import harness_limit_s as harness_limit_s
from deepcoder_contracts.judge_time import judging_deadline_s as judging_deadline_s
from deepcoder_contracts.judge_time import submission_limit_s as submission_limit_s
from deepcoder_sandbox.worker.packets import RunLimits
from deepcoder_sandbox.worker.program import STORED_CODE_BYTES
from deepcoder_sandbox.worker.rootfs import SCRATCH_MB
from deepcoder_sandbox.worker.values import MAX_BYTES

MIB: Final = 1 << 20

OUTPUT_BYTES: Final = 64 * MIB
"""Maximum bytes that a program may write to stdout, to stderr, or to any file of its own."""

VALUE_BYTES: Final = MAX_BYTES
"""Longest encoding of a returned value, in bytes."""

CLAIM_BYTES: Final = 4096
"""Maximum bytes of a program's claim about itself, and of the end of stderr that is read."""

ALARM_GRACE_S: Final = 1.0
"""livecodebench: seconds past the limit in which the alarm may unwind a test. The harness allows as much per test."""

MAX_QUEUED_A_SLOT: Final = 64
"""Waiting submissions per slot before more are refused."""

TESTS_STORE_MB: Final = 1024
"""Memory for stored test sets, in MiB."""

BODY_MB: Final = MAX_BODY_BYTES // MIB
"""Largest request body, in MiB."""

_JUDGE_MB = 256
ZYGOTES_MB: Final = 56
"""Memory of a slot's zygotes, one of each kind, in MiB."""
_SLOT_MB = (2 * OUTPUT_BYTES + VALUE_BYTES + STORED_CODE_BYTES) // MIB + 1 + SCRATCH_MB + ZYGOTES_MB


def of_one_test(time_limit_s: float, memory_limit_mb: int, file_bytes: int) -> RunLimits:
    """Return the limits of a process that runs one test."""
    return RunLimits(time_limit_s, time_limit_s * WALL_PER_CPU, memory_limit_mb, file_bytes)


def of_all_tests(time_limit_s: float, tests: int, memory_limit_mb: int, file_bytes: int) -> RunLimits:
    """Return the limits of a process that runs all tests (livecodebench)."""
    seconds = harness_limit_s(time_limit_s, tests)
    return RunLimits(seconds, seconds, memory_limit_mb, file_bytes)


def needed_mb(slots: int, memory_mb: int, store_mb: int, requests_mb: int) -> int:
    """Return the memory of a judge in MiB if every slot's program uses all that it may, including files in memory.

    Page tables are left out, though a program can make them large (docs/judge.md, "Not defended").

    `requests_mb` is what requests hold (`deepcoder_sandbox.server.memory_budget`).
    """
    return _JUDGE_MB + store_mb + requests_mb + slots * (memory_mb + _SLOT_MB)


def fitting_mb(slots: int, store_mb: int, requests_mb: int, limit_mb: int) -> int:
    """Return the largest memory limit of a program that fits into `limit_mb`."""
    return (limit_mb - needed_mb(slots, 0, store_mb, requests_mb)) // slots
