"""How long a process was kept waiting for a processor, its threads included: time that no wall-clock limit may count.

The scheduler tells it of each living thread (`schedstat`); looks a second apart catch all but the shortest lived. One
thread's wait is as it stands: it cannot wait unless the processors are busy. The sum over threads could be driven up by
waking hundreds of them at once, so it counts for at most a multiple of the CPU time that the process got meanwhile.
Where the kernel does not say, nothing counts.
"""

from __future__ import annotations

import os

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
        try:
            path = f"{self._tasks}/{thread}/schedstat"
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        except OSError:
            return 0
        try:
            return int(os.read(descriptor, 128).split()[1])
        except (OSError, ValueError, IndexError):
            return 0
        finally:
            os.close(descriptor)
