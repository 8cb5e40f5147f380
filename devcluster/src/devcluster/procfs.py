"""Identifies processes reliably: a pid is reused, but a pid with its start time and boot id is not.

It only reads /proc. A process that has ended, or is a zombie, is not alive; nothing here raises for one.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessId:
    """Identity of a process across reuse of its pid and across reboots; `start_ticks` is field 22 of /proc/PID/stat."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """Identity of the process that has `pid` now, or None."""
        fields = stat_fields(pid)
        return None if fields is None else cls(pid, int(fields[19]), boot_id())

    def alive(self) -> bool:
        """Whether exactly this process still runs (a zombie does not)."""
        fields = stat_fields(self.pid)
        return (
            fields is not None
            and fields[0] not in ("Z", "X")
            and int(fields[19]) == self.start_ticks
            and self.boot_id == boot_id()
        )

    def kill(self, wait_seconds: float = 20.0) -> None:
        """SIGKILL exactly this process and wait until it is gone; raises TimeoutError if it stays."""
        deadline = time.monotonic() + wait_seconds
        while self.alive():
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {self.pid} is still there {wait_seconds:.0f} s after SIGKILL")
            time.sleep(0.02)


def boot_id() -> str:
    """Identifier of this boot of the machine."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def stat_fields(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third (state) on, or None when there is no such process."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()


def children(pid: int) -> list[int]:
    """Pids of the children of `pid`, as seen from here."""
    try:
        return [int(word) for word in (PROC / str(pid) / "task" / str(pid) / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def command_line(pid: int) -> list[str]:
    """Arguments of the process; empty if it is gone."""
    try:
        data = (PROC / str(pid) / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [word.decode(errors="replace") for word in data.split(b"\0")[:-1]]


def resident_bytes(pid: int) -> int:
    """Resident memory of the process in bytes; 0 if it is gone."""
    try:
        pages = int((PROC / str(pid) / "statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def save(path: Path, process: ProcessId, **more: str | int) -> None:
    """Record `process` (and `more`) as JSON, atomically and durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    making = path.with_name(f".{path.name}.{os.getpid()}")
    with making.open("w") as handle:
        json.dump({**asdict(process), **more}, handle)
        handle.flush()
        os.fsync(handle.fileno())
    making.rename(path)


def load(path: Path) -> ProcessId | None:
    """The recorded process, or None if the record is missing or invalid."""
    try:
        record = json.loads(path.read_text())
        return ProcessId(int(record["pid"]), int(record["start_ticks"]), str(record["boot_id"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
