"""How long a process was kept waiting for a processor, its threads included: time that no wall-clock limit may count.

The scheduler tells it of each living thread (`schedstat`); looks a second apart catch all but the shortest lived. One
thread's wait is as it stands: it cannot wait unless the processors are busy. The sum over threads could be driven up by
waking hundreds of them at once, so it counts for at most a multiple of the CPU time that the process got meanwhile.
Where the kernel does not say, nothing counts.

A wait that is still going on is in no sum of the scheduler's: who is about to end a process asks `is_runnable` first.
"""

from __future__ import annotations

import os
from collections.abc import Callable

_SHARE = 8
"""A process of many threads is believed to have waited at most this many times as long as it ran."""

_MOST_THREADS = 256


class Starvation:
    """Follows one process, by its pid in the /proc that is given (a descriptor, or the usual one)."""

    def __init__(self, pid: int, proc: int | None = None) -> None:
        self._first = str(pid)
        self._tasks = f"{pid}/task" if proc is not None else f"/proc/{pid}/task"
        self._proc = proc
        self._waited: dict[str, int] = {}
        self._marked: dict[str, int] = {}

    def mark(self) -> None:
        """Count from now on: exactly for the first thread, for every other from the last look."""
        self._waited[self._first] = self._read(self._first)
        self._marked = dict(self._waited)

    def seconds(self, cpu_s: float) -> float:
        """Return how long it waited since the mark (or its start), in which it ran for `cpu_s`."""
        for thread in self._threads():
            self._waited[thread] = max(self._waited.get(thread, 0), self._read(thread))
        waits = [waited - self._marked.get(thread, 0) for thread, waited in self._waited.items()]
        return max(max(waits, default=0) / 1e9, min(sum(waits) / 1e9, _SHARE * cpu_s))

    def is_runnable(self) -> bool:
        """Whether one of its threads runs or waits for a processor at this moment: a wait that is in no sum yet."""
        return any(self._field(thread, "stat", _state) == b"R" for thread in self._threads())

    def _threads(self) -> list[str]:
        try:
            descriptor = os.open(self._tasks, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._proc)
        except OSError:
            return []
        try:
            return os.listdir(descriptor)[:_MOST_THREADS]
        except OSError:
            return []
        finally:
            os.close(descriptor)

    def _read(self, thread: str) -> int:
        """Nanoseconds that the thread has waited, up to when it was last given a processor."""
        return int(self._field(thread, "schedstat", _second) or 0)

    def _field(self, thread: str, name: str, pick: Callable[[bytes], bytes]) -> bytes | None:
        try:
            path = f"{self._tasks}/{thread}/{name}"
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        except OSError:
            return None
        try:
            return pick(os.read(descriptor, 4096))
        except (OSError, IndexError):
            return None
        finally:
            os.close(descriptor)


def _second(schedstat: bytes) -> bytes:
    return schedstat.split()[1]


def _state(stat: bytes) -> bytes:
    """The letter behind the command's name, which is in brackets and may hold any character."""
    return stat.rpartition(b")")[2].split()[0]
