"""Measures how long other processes kept a process from running: time that no wall-clock limit may count.

There are two cases. In the first, the process waits for a processor. The scheduler reports for each living thread how
long it has waited (`schedstat`), and a look every second catches all but the shortest-lived threads. In the second, the
kernel keeps the process in an uninterruptible wait: it reads a page from a busy disk, or it starts, maps a file or
ends, and for that needs a lock (such as that of a library's file) whose holder waits for a processor. The process is
then *held*, for milliseconds on a quiet machine and for seconds on a busy one, and no counter reports it.

The wait of a single thread counts as it is. The sum over threads, which is the wait of a program whose threads take
turns, counts only as far as the process was *stalled*: some thread was ready, and none ran. How long the process was
stalled or held is estimated from samples at random moments, each of which stands for the time since the previous one.

What a program can forge, and what it cannot:

- Threads that wake at a common instant wait for each other: the sum of their waits grows without end on an idle
  machine. But while one of them waits for another, that other runs: the process is not stalled.
- A sample that takes a running thread for a waiting one (a process's CPU clock lags up to a tick) costs the program the
  CPU time; so does a thread that waits while another runs. So on an idle machine, at most about the process's own CPU
  time counts as waiting for a processor.
- It can have itself held, by reading what nobody has read. The cheap ways, in which it would be held for as long as it
  likes and use no CPU time, are refused (`deepcoder_sandbox.worker.seccomp`). For ways that nobody has thought of there
  is a bound: being held, with what may be forged of waiting for a processor, counts for at most half of the time.
- Time that it ran never counts as waiting. So on an idle machine at least half of every program's time counts: twice
  the limit is never exceeded.
- It cannot be ready, or held, just when a sample is taken: the moments come from the kernel's random numbers.
- It is believed if others do keep it waiting: on a machine whose processors are all taken, a program with one thread in
  the queue counts as starved while another thread sleeps, because a program whose work is in the first looks the same.
  That lasts as long as the others' load, which no program here causes: each has limits of its own.

If the kernel does not report a value, nothing counts. A wait that is still going on is not in the scheduler's sums yet,
nor is being held in the samples. So before a process is ended, note the time, then read its threads' `states`, then
`seconds`, in this order. The sum then has all waits up to that reading, unless `may_go_on` says that a thread is still
being kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

_SAMPLES_A_LIMIT = 50
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.1
"""Bounds of the mean time between two samples; a short limit needs more of them."""

_SLOW_SAMPLE_S = 0.005
"""A sample takes longer only if this process was kept waiting itself. That its subject ran meanwhile then says
nothing."""

_MOST_THREADS = 256

_MOST_HELD_S = 5.0
"""A process may be held for this long past a limit. Being held counts by half, and twice this is within the margin of a
submission's deadline beyond its limit."""

READY, HELD = "R", "D"


class Starvation:
    """Follows one process, by its pid in the given /proc (a descriptor, or the usual one).

    `cpu_s` returns the CPU time of the process, None once it is gone; `limit_s` is the shortest time that matters to
    the caller.
    """

    def __init__(
        self, pid: int, cpu_s: Callable[[], float | None], limit_s: float, since: float, proc: int | None = None
    ) -> None:
        """Count from the start of the process, which was at `since` (monotonic)."""
        self._first = str(pid)
        self._tasks = f"{pid}/task" if proc is not None else f"/proc/{pid}/task"
        self._proc = proc
        self._cpu_s = cpu_s
        self._every_s = min(_LONGEST_PAUSE_S, max(_SHORTEST_PAUSE_S, limit_s / _SAMPLES_A_LIMIT))
        self._waited: dict[str, int] = {}
        self._marked: dict[str, int] = {}
        self._stalled_s = self._held_s = self._used_s = self._marked_used_s = 0.0
        self._since = self._sampled = self._drawn = since
        self.sample_at = 0.0
        """When `sample` is due (monotonic)."""
        self.draw()

    def mark(self) -> None:
        """Count from now on: exactly for the first thread, for every other from the last look."""
        self._waited[self._first] = self._read(self._first)
        self._marked = dict(self._waited)
        self._stalled_s, self._held_s, self._marked_used_s = 0.0, 0.0, self._read_cpu()
        self._since = self._sampled = self._drawn = time.monotonic()

    def draw(self) -> None:
        """Choose when to take the next sample, counted from now.

        No program can foresee it; `random` would begin with the same seed here and in every program.
        """
        share = int.from_bytes(os.urandom(2)) / 0xFFFF
        self._drawn = time.monotonic()
        self.sample_at = self._drawn + self._every_s * (0.5 + share)

    def sample(self) -> None:
        """If a sample is due, look whether the process is stalled or held.

        No sum bounds how long it is held, so only the time since this sample's moment was drawn counts.
        """
        began = time.monotonic()
        if began < self.sample_at:
            return
        used_s = self._read_cpu()
        states = self.states()
        now = time.monotonic()
        if self._read_cpu() == used_s or now - began > _SLOW_SAMPLE_S:
            if READY in states:
                self._stalled_s += began - self._sampled
            elif HELD in states:
                self._held_s += began - self._drawn
        self._sampled = began
        self.draw()

    def seconds(self) -> float:
        """Return how long others kept it from running since the mark (or its start)."""
        for thread in self._threads():
            self._waited[thread] = max(self._waited.get(thread, 0), self._read(thread))
        waits = [waited - self._marked.get(thread, 0) for thread, waited in self._waited.items()]
        waited_s = max(max(waits, default=0) / 1e9, min(sum(waits) / 1e9, self._stalled_s))
        ran_s = self._read_cpu() - self._marked_used_s
        passed_s = time.monotonic() - self._since
        waited_s = min(waited_s, max(0.0, passed_s - ran_s))
        forged_s = min(waited_s, ran_s)
        most_held_s = min((passed_s - waited_s - forged_s) / 2, passed_s - waited_s - ran_s)
        return waited_s + max(0.0, min(self._held_s, most_held_s))

    def states(self) -> str:
        """Return the current state of each of its threads, as in /proc: R, D, S, …; empty if it is gone."""
        return "".join((self._field(thread, "stat", _state) or b"").decode() for thread in self._threads())

    def _read_cpu(self) -> float:
        now_s = self._cpu_s()
        self._used_s = self._used_s if now_s is None else now_s
        return self._used_s

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
        """Return the ns that the thread has waited, up to when it last got a processor."""
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


def may_go_on(states: str, over_s: float) -> bool:
    """Return whether a limit exceeded by `over_s` must wait, because threads in these `states` are kept now.

    A ready thread will run, and meets a limit of CPU time; a held one is believed for a while.
    """
    return READY in states or (HELD in states and over_s <= _MOST_HELD_S)


def _second(schedstat: bytes) -> bytes:
    return schedstat.split()[1]


def _state(stat: bytes) -> bytes:
    """Return the letter after the command's name in brackets, which may hold any character."""
    return stat.rpartition(b")")[2].split()[0]
