"""Derives the verdict from how a run ended: pure, and in one place.

The order matters. The judge's own failures and the limits come first, then what the program says about itself, then its
exit status, and only then is its output compared.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from dataclasses import dataclass

from deepcoder_contracts.judge import TestVerdict, Verdict
from deepcoder_contracts.strict import excerpt
from deepcoder_sandbox.worker.packets import RunEnded, RunLimits

_DETAIL_CHARS = 1000
_MEMORY_SHARE = 0.9
_DOING = {"R": "ready", "S": "asleep", "D": "held by the kernel", "T": "stopped", "Z": "ended", "X": "ended"}


@dataclass(frozen=True)
class Claim:
    """What a program's process said about itself. It is evidence against the program only, never for it."""

    failure: str | None = None
    detail: str | None = None
    completed: str | None = None
    """script: the word that shows that the test ran to its end."""


class KilledFromOutside(Exception):
    """The runner got a SIGKILL that neither the zygote nor the program can have sent."""


def read_claim(report: bytes) -> Claim:
    """Return the claim in a report; an empty one if the report is invalid."""
    try:
        fields = json.loads(report) if report else None
    except (ValueError, RecursionError):
        return Claim()
    if not isinstance(fields, dict):
        return Claim()
    failure, detail, completed = fields.get("failure"), fields.get("detail"), fields.get("completed")
    return Claim(
        failure=failure if isinstance(failure, str) else None,
        detail=detail if isinstance(detail, str) else None,
        completed=completed if isinstance(completed, str) else None,
    )


def failed_run(
    ended: RunEnded, limits: RunLimits, claim: Claim, output_bytes: int, stderr: bytes, crash_counts: bool = True
) -> TestVerdict | None:
    """Return the verdict of a run that failed; None if its output must be compared.

    With `crash_counts` False, a crash or a non-zero exit status is no failure. Raises KilledFromOutside.
    """
    verdict, detail = _failure(ended, limits, claim, output_bytes)
    if verdict is None or (verdict is Verdict.RUNTIME_ERROR and not crash_counts):
        return None
    return make(verdict, ended.cpu_s, detail or last_line(stderr) or f"exit status {ended.exit_status}")


def _failure(ended: RunEnded, limits: RunLimits, claim: Claim, output_bytes: int) -> tuple[Verdict | None, str | None]:
    died_of = ended.signal
    if ended.killed_for == "cpu" or died_of == signal.SIGXCPU or ended.cpu_s > limits.cpu_limit_s:
        return Verdict.TIME_LIMIT, f"used more than {limits.cpu_limit_s:g} s of CPU time"
    if ended.killed_for == "wall":
        return Verdict.TIME_LIMIT, f"still there after {limits.wall_limit_s:g} s, mostly waiting{doing(ended.states)}"
    if died_of == signal.SIGKILL:
        raise KilledFromOutside("the program was killed from outside, perhaps by the kernel because memory ran out")
    if died_of == signal.SIGXFSZ or output_bytes >= limits.file_bytes:
        return Verdict.OUTPUT_LIMIT, f"wrote more than {limits.file_bytes} bytes"
    if claim.failure == "memory":
        return Verdict.MEMORY_LIMIT, f"wanted more than {limits.memory_limit_mb} MiB"
    if claim.failure == "output":
        return Verdict.OUTPUT_LIMIT, claim.detail
    if claim.failure == "compile":
        return Verdict.COMPILE_ERROR, claim.detail
    if died_of is not None:
        if ended.max_rss_kb >= _MEMORY_SHARE * limits.memory_limit_mb * 1024:
            return Verdict.MEMORY_LIMIT, f"died near {limits.memory_limit_mb} MiB"
        return Verdict.RUNTIME_ERROR, f"died of {_signal_name(died_of)}"
    if claim.failure is not None:
        return Verdict.RUNTIME_ERROR, claim.detail
    if ended.exit_status != 0:
        return Verdict.RUNTIME_ERROR, None
    return None, None


def doing(states: str) -> str:
    """Return in words what threads in these states (letters of /proc) do, to end a sentence with; empty without any."""
    counts = Counter(_DOING.get(state, f"in state {state}") for state in states)
    told = ", ".join(f"{count} {what}" for what, count in counts.items())
    return f" (threads: {told})" if told else ""


def make(verdict: Verdict, seconds: float, detail: str | None = None) -> TestVerdict:
    """Return a verdict with its detail escaped, and truncated to what the contract allows."""
    shown = None if not detail else detail.encode("ascii", "backslashreplace").decode()[:_DETAIL_CHARS]
    return TestVerdict(verdict=verdict, seconds=max(0.0, seconds), detail=shown)


def passed(seconds: float) -> TestVerdict:
    """Return the verdict of a passed test."""
    return TestVerdict(verdict=Verdict.PASSED, seconds=seconds if seconds > 0 else 0.0)


def fill_skipped(verdicts: list[TestVerdict], count: int) -> list[TestVerdict]:
    """Return the verdicts, followed by `skipped` for every test that was not run."""
    return verdicts + [make(Verdict.SKIPPED, 0.0)] * (count - len(verdicts))


def last_line(stderr: bytes) -> str | None:
    """Return the last line of a traceback, escaped."""
    lines = stderr.strip().rsplit(b"\n", 1)
    return excerpt(lines[-1], 300) if lines[-1] else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
