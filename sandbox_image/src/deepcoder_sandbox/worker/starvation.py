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
- A sample that takes a thread which runs for one that waits (the CPU clock of a process lags up to a tick) costs the
  program the CPU time; so does a thread whose wait is another's run. On a machine with nothing else to do, all that
  counts as waiting for a processor is therefore about the process's own CPU time at most.
- It can have itself held, by reading what nobody has read. The cheap ways, in which it would be held for as long as it
  likes and use no CPU time, are refused (`deepcoder_sandbox.worker.seccomp`). For those that nobody has thought of,
  there is a bound: being held counts only so far that, with what may be forged of waiting for a processor, it is half
  of the time.
- What it ran is never taken for waiting. So on a machine with nothing else to do no program makes its time count less
  than half: deadlines of twice the limits lie beyond it.
- It cannot be ready, or held, just when a sample is taken: the moments come from the kernel's random numbers.
- It is believed where others do keep it waiting: on a machine whose processors are all taken, a program that has one
  thread queue for them counts as starved while another sleeps, since a program whose work is in that thread looks the
  same. That lasts as long as the others' load, which no program here brings about: each has limits of its own.

Where the kernel does not say, nothing counts. A wait that is still going on is in no sum of the scheduler's, and being
held is not in the samples yet. So who is about to end a process notes the time, then looks at its threads' `states`,
then asks for `seconds`, in this order: whatever others kept it from up to the look is in the sum then, unless
`may_go_on` says that one of its threads is kept, still.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

_SAMPLES_A_LIMIT = 50
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.1
"""Mean distance of two samples; a short limit asks for more of them."""

_SLOW_SAMPLE_S = 0.005
"""A sample takes longer only where this process was kept waiting itself: that its subject ran meanwhile says nothing
then."""

_MOST_THREADS = 256

_MOST_HELD_S = 5.0
"""A process may be held for so long past a limit. Twice that, since it counts by half, is within the margin that a
submission's deadline has beyond its limit."""

READY, HELD = "R", "D"


class Starvation:
    """Follows one process, by its pid in the /proc that is given (a descriptor, or the usual one).

    `cpu_s` tells the CPU time that the process has had, None once it is gone; `limit_s` is the shortest time that
    matters to whoever asks.
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
        """Choose when the next sample is taken, from now on.

        Nobody foresees it: the module `random` would begin with the same seed here and in every program.
        """
        share = int.from_bytes(os.urandom(2)) / 0xFFFF
        self._drawn = time.monotonic()
        self.sample_at = self._drawn + self._every_s * (0.5 + share)

    def sample(self) -> None:
        """Look whether the process is stalled or held, if it is time to; else do nothing.

        No sum bounds how long it is held: what was before the moment of this sample was drawn is not looked at.
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
        """Return how long others kept it from going on since the mark (or its start)."""
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
        """Return what each of its threads does at this moment, as /proc has it: R, D, S, …; empty where it is gone."""
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


def may_go_on(states: str, over_s: float) -> bool:
    """Whether a limit that seems over by so much may be none, since threads in these `states` are kept at this moment.

    One that is ready will run, and meets a limit of CPU time; one that is held is believed for a while.
    """
    return READY in states or (HELD in states and over_s <= _MOST_HELD_S)


def _second(schedstat: bytes) -> bytes:
    return schedstat.split()[1]


def _state(stat: bytes) -> bytes:
    """The letter behind the command's name, which is in brackets and may hold any character."""
    return stat.rpartition(b")")[2].split()[0]
