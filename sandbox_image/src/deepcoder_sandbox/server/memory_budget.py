"""Bounds the memory that requests hold: bodies being read, and submissions that wait or are judged.

The number of submissions does not bound memory, because each may be as long as a body. What does not fit is refused,
with the time after which to retry. A single request always fits, because otherwise it could never be judged. Beyond its
first request, a run holds at most as much as is left free, so that it never takes the room of others: half of all if it
is alone, a third if there are two runs, and a new run finds as much. Not thread-safe.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from deepcoder_contracts.judge import JudgeRequest, TestCase
from deepcoder_sandbox.limits import MIB

QUEUED_MB: Final = 128
"""Default memory for bodies and submissions, in MiB."""

ANSWERS_MB: Final = 16
"""Memory for answers that are kept for clients that ask again, in MiB."""

MAX_CONNECTIONS: Final = 2048
"""Maximum connections at once; further clients are told to retry."""

CONNECTION_BYTES: Final = 1 << 16
"""Bytes that a connection may hold beside its body: headers, and received data that is not yet read."""

_WIDEST_CHARACTER = 4
_OBJECT_BYTES = 600
"""Bytes of a test's objects beside its texts, estimated generously."""


def held_mb(queued_mb: int, body_mb: int) -> int:
    """Return the most memory that requests hold, in MiB, for the sum that must fit into a container.

    One long body is parsed at a time. Meanwhile its text exists twice, and with one character from outside the Basic
    Multilingual Plane every character of a text takes four bytes.
    """
    reading_mb = (_WIDEST_CHARACTER + 1) * body_mb
    return queued_mb + ANSWERS_MB + MAX_CONNECTIONS * CONNECTION_BYTES // MIB + reading_mb


def text_bytes(text: str) -> int:
    """Return the bytes of memory that a text takes."""
    return text.__sizeof__()


def tests_bytes(tests: tuple[TestCase, ...] | list[TestCase]) -> int:
    """Return the bytes of memory that tests take."""
    return sum(_OBJECT_BYTES + text_bytes(test.input) + text_bytes(test.output) for test in tests)


def request_bytes(request: JudgeRequest) -> int:
    """Return the bytes of memory that a request takes, without stored tests."""
    return _OBJECT_BYTES + text_bytes(request.code) + tests_bytes(request.tests or [])


class OverBudget(Exception):
    """A request does not fit beside what others hold."""


class MemoryBudget:
    """A number of bytes, lent in shares."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held = 0
        """Bytes lent now."""
        self._held_by: Counter[str] = Counter()

    def held_by(self, run: str) -> int:
        """Return the bytes lent to a run now."""
        return self._held_by[run]

    def lend(self, run: str | None, more: int) -> None:
        """Lend `more` bytes; a negative number takes bytes back."""
        self.held += more
        if run is not None:
            self._held_by[run] += more
            if not self._held_by[run]:
                del self._held_by[run]


class Share:
    """The memory that one request holds. It must be released in every case."""

    def __init__(self, room: MemoryBudget, run: str | None = None) -> None:
        """Hold nothing yet. `run` is None if only one party uses the budget."""
        self._room = room
        self._run = run
        self._size = 0

    def resize(self, size: int) -> None:
        """Hold `size` bytes from now on. Raises OverBudget, and then holds as much as before."""
        if size > self._size and not self._fits(size):
            raise OverBudget
        self._room.lend(self._run, size - self._size)
        self._size = size

    def _fits(self, size: int) -> bool:
        others = self._room.held - self._size
        free = self._room.max_bytes - others - size
        if not others:
            return True
        if free < 0 or self._run is None:
            return free >= 0
        beside = self._room.held_by(self._run) - self._size
        return not beside or beside + size <= free

    def release(self) -> None:
        """Hold nothing any more."""
        self.resize(0)
