"""`deepcoder-sandbox judge`: JSON Lines in, JSON Lines out, in input order, each as soon as all before it are judged.

A thread reads the input, so that an answer need not wait for the next line. A line that is not a request is answered by
a line with `error`, which names the line, and `field`; the rest of the batch continues. Memory is bounded by how far
reading may run ahead of writing, in lines and in bytes like a server's requests, and by the longest line, but not by
the size of the batch. Raises OSError if reading or writing fails.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import IO

from deepcoder_contracts.judge import JudgeRequest, JudgeResponse, Problem, Scoring, TestCase
from deepcoder_sandbox import admission, limits
from deepcoder_sandbox.admission import Refused
from deepcoder_sandbox.pool import Draining, Pool
from deepcoder_sandbox.server.memory_budget import QUEUED_MB, MemoryBudget, OverBudget, Share, request_bytes
from deepcoder_sandbox.submission import Submission

AHEAD_PER_WORKER = 8
"""Lines read ahead of the written answers, per worker."""

AHEAD_BYTES = QUEUED_MB * limits.MIB
"""Maximum memory of requests that are read but not yet judged. A single request always fits."""

LINE_BYTES = limits.BODY_MB * limits.MIB
"""Longest line in bytes: the same as for a request body."""

QUEUED_MORE = 2
"""Lines beyond `AHEAD_PER_WORKER`: one that is being read, one that is being written."""

_PROGRESS_EVERY_S = 0.5
_CLOSE_S = 5.0

_Item = Future[JudgeResponse] | Problem


def run(source: IO[bytes], sink: IO[bytes], pool: Pool, scoring: Scoring | None) -> int:
    """Judge every line of `source`, write the answers to `sink`, and close the pool.

    Returns the exit status: 0, or 1 if some line has no verdict, because it was invalid or the judge itself failed.
    """
    pending: queue.Queue[_Item | Exception | None] = queue.Queue(AHEAD_PER_WORKER * pool.slots)
    threading.Thread(target=_read, args=(source, pool, scoring, pending), name="reader", daemon=True).start()
    progress = _Progress()
    try:
        while (item := pending.get()) is not None:
            if isinstance(item, Exception):
                raise item
            _write(sink, item, progress)
    except BaseException:  # nobody waits for the answers to come
        pool.close(0.0)
        raise
    finally:
        progress.finish()
    pool.close(_CLOSE_S)
    return 1 if progress.refused or progress.failed else 0


def _read(
    source: IO[bytes], pool: Pool, scoring: Scoring | None, pending: queue.Queue[_Item | Exception | None]
) -> None:
    ahead = _Ahead(AHEAD_BYTES)
    try:
        for number, line in _lines(source):
            pending.put(_submit(pool, number, line, scoring, ahead))
        pending.put(None)
    except Draining:  # the writer is gone, and nobody reads `pending`
        return
    except Exception as error:  # the writer raises it
        pending.put(error)


def _lines(source: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Yield number and content of every line that is not blank; None for a line that is too long, which is dropped."""
    number = 0
    while line := source.readline(LINE_BYTES + 1):
        number += 1
        if len(line) <= LINE_BYTES:
            if line.strip():
                yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = source.readline(LINE_BYTES)
        yield number, None


class _Ahead:
    """Memory for requests that are read but not yet judged. Only the reader waits; each judged request wakes it."""

    def __init__(self, max_bytes: int) -> None:
        self._room = MemoryBudget(max_bytes)
        self._changed = threading.Condition()

    def share(self) -> Share:
        """Return the share of one request. It must be released in every case."""
        return Share(self._room)

    def resize(self, share: Share, size: int) -> None:
        """Wait until there is room, then hold `size` bytes."""
        with self._changed:
            while True:
                try:
                    share.resize(size)
                except OverBudget:
                    self._changed.wait()
                else:
                    return

    def release(self, share: Share) -> None:
        """Give the share back, and wake the reader."""
        with self._changed:
            share.release()
            self._changed.notify_all()


def _submit(pool: Pool, number: int, line: bytes | None, scoring: Scoring | None, ahead: _Ahead) -> _Item:
    """Return the answer to a line, pending or final. A request holds its share until it is judged."""
    share = ahead.share()
    try:
        if line is None:
            raise Refused(f"body: longer than {LINE_BYTES} bytes: send fewer or shorter tests", "body")
        ahead.resize(share, len(line))
        request = admission.parse_request(line)
        ahead.resize(share, request_bytes(request))
        if scoring is not None:
            request = request.model_copy(update={"scoring": scoring})
        answer = pool.submit(Submission(request, _tests_of(request)), queue_counts=False)
    except Refused as refused:
        ahead.release(share)
        return Problem(error=f"line {number}: {refused.error}", field=refused.field)
    answer.add_done_callback(lambda _: ahead.release(share))
    return answer


def _tests_of(request: JudgeRequest) -> tuple[TestCase, ...]:
    if request.tests is None:
        raise Refused("tests_sha256: there is no store without a server: give the tests themselves", "tests_sha256")
    tests = tuple(request.tests)
    admission.check(request, tests)
    return tests


def _write(sink: IO[bytes], item: _Item, progress: _Progress) -> None:
    answer = item if isinstance(item, Problem) else item.result()
    sink.write(answer.model_dump_json().encode() + b"\n")
    sink.flush()
    progress.count(answer)


class _Progress:
    """A progress line on stderr, if that is a terminal."""

    def __init__(self) -> None:
        self.answered = self.passed = self.refused = self.failed = 0
        self._started = time.monotonic()
        self._shown = 0.0
        self._tty = sys.stderr.isatty()

    def count(self, answer: JudgeResponse | Problem) -> None:
        """Count an answer, and update the line now and then."""
        self.answered += 1
        if isinstance(answer, Problem):
            self.refused += 1
        elif answer.passed is None:
            self.failed += 1
        else:
            self.passed += answer.passed
        if self._tty and time.monotonic() - self._shown > _PROGRESS_EVERY_S:
            self._shown = time.monotonic()
            self._show("")

    def finish(self) -> None:
        """Leave the last state on the terminal."""
        if self._tty and self.answered:
            self._show("\n")

    def _show(self, end: str) -> None:
        rate = self.answered / max(0.001, time.monotonic() - self._started)
        state = f"{self.answered} answered, {self.passed} passed, {rate:.1f}/s"
        state += f", {self.refused} no requests" if self.refused else ""
        state += f", {self.failed} not judged" if self.failed else ""
        sys.stderr.write(f"\r{state}\x1b[K{end}")
        sys.stderr.flush()
