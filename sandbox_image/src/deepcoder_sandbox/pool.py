"""A pool of slots behind one bounded queue: a thread a slot, first come, first served.

Full means full: `submit` refuses at once with a hint when to come back, instead of letting the queue grow. Draining
refuses new work, finishes what was accepted and then ends every zygote.

A slot that cannot start its zygote answers `error` at once, and would attract work by being so quick: `failing_s`
tells of it, so that the server can ask for no more. Such a slot tries again by itself, work or no work.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from deepcoder_contracts.judge import JudgeResponse
from deepcoder_sandbox import limits
from deepcoder_sandbox.slot import Slot
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.zygote_process import ZygoteConfig, ZygoteFailed

_MAX_RETRY_AFTER_S = 30
_FAILED_STARTS = 3
_START_AGAIN_S = 5.0


class QueueFull(Exception):
    """No more room for submissions."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"the queue is full: try again in {retry_after_s} s, or at another judge")
        self.retry_after_s = retry_after_s


class Draining(Exception):
    """The judge is about to stop and takes no more work."""


@dataclass(frozen=True)
class Observer:
    """What the pool tells about its work, for metrics."""

    queued_for: Callable[[float], None] = lambda seconds: None
    judged: Callable[[Submission, JudgeResponse], None] = lambda submission, answer: None
    recycled: Callable[[str], None] = lambda reason: None


@dataclass(frozen=True)
class _Work:
    submission: Submission
    deadline: float | None
    """The client's, counted from its arrival."""
    queued_at: float
    answer: Future[JudgeResponse]


class Pool:
    """Judges submissions on `slots` zygotes at once."""

    def __init__(
        self, config: ZygoteConfig, slots: int, worker: str, max_queued: int, observer: Observer | None = None
    ) -> None:
        self.slots = slots
        self._observer = observer or Observer()
        self._max_queued = max_queued
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._busy = 0
        self._waiting = 0
        self._draining = False
        self._mean_s = 1.0
        self._slots = [Slot(config, worker, self._observer.recycled) for _ in range(slots)]
        self._threads = [
            threading.Thread(target=self._work_through, args=(slot,), name=f"slot-{index}", daemon=True)
            for index, slot in enumerate(self._slots)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def busy(self) -> int:
        """Slots in use."""
        return self._busy

    @property
    def queued(self) -> int:
        """Submissions waiting for a slot."""
        return self._waiting

    @property
    def draining(self) -> bool:
        """Whether new work is refused."""
        return self._draining

    @property
    def failing_s(self) -> float:
        """Seconds for which a slot has had no zygote although it tried three times or more; 0 where there is none."""
        since = [slot.failing_since for slot in self._slots if slot.failed_starts >= _FAILED_STARTS]
        return max((time.monotonic() - moment for moment in since if moment is not None), default=0.0)

    def submit(self, submission: Submission) -> Future[JudgeResponse]:
        """Queue a submission. Raises QueueFull or Draining; the future never fails for what a program did."""
        now = time.monotonic()
        asked_s = submission.request.deadline_s
        work = _Work(submission, None if asked_s is None else now + asked_s, now, Future())
        with self._lock:
            if self._draining:
                raise Draining("the judge is draining: send this to another")
            if self._waiting >= self._max_queued:
                raise QueueFull(self._retry_after_s())
            self._waiting += 1
        self._queue.put(work)
        return work.answer

    def _retry_after_s(self) -> int:
        """When about half of the queue will have been judged."""
        return max(1, min(_MAX_RETRY_AFTER_S, round(self._waiting * self._mean_s / self.slots / 2)))

    def _work_through(self, slot: Slot) -> None:
        try:
            with contextlib.suppress(ZygoteFailed):  # then the first submission tries again
                slot.ensure_zygote()
            while (work := self._next(slot)) is not None:
                with self._lock:
                    self._waiting -= 1
                    self._busy += 1
                try:
                    self._judge(slot, work)
                finally:
                    with self._lock:
                        self._busy -= 1
        finally:
            slot.close()

    def _next(self, slot: Slot) -> _Work | None:
        """Wait for work; a slot without a zygote tries to start one meanwhile."""
        while True:
            try:
                return self._queue.get(timeout=_START_AGAIN_S if slot.failed_starts else None)
            except queue.Empty:
                with contextlib.suppress(ZygoteFailed):
                    slot.ensure_zygote()

    def _judge(self, slot: Slot, work: _Work) -> None:
        started = time.monotonic()
        self._observer.queued_for(started - work.queued_at)
        try:
            submission = work.submission
            allowed_s = limits.judging_deadline_s(submission.request.time_limit_s, len(submission.tests))
            deadline = work.deadline or started + allowed_s
            if started > deadline:
                answer = slot.error_answer(work.submission, "the deadline passed in the queue", started)
            else:
                answer = slot.judge(work.submission, deadline)
        except Exception as error:  # a defect of ours is the judge's failure too, and the slot lives on
            answer = slot.error_answer(work.submission, f"{type(error).__name__}: {error}", started)
        self._mean_s += 0.05 * (time.monotonic() - started - self._mean_s)
        self._observer.judged(work.submission, answer)
        work.answer.set_result(answer)

    def drain(self) -> None:
        """Refuse new work from now on; the slots end when the queue is empty."""
        with self._lock:
            if self._draining:
                return
            self._draining = True
        for _ in self._threads:
            self._queue.put(None)

    def close(self, timeout_s: float) -> bool:
        """Drain and wait at most `timeout_s`; return whether all accepted work was finished."""
        self.drain()
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)
