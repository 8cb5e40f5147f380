"""A pool of slots behind one bounded queue: one thread per slot; runs take turns (`deepcoder_sandbox.fair_queue`).

If the queue is full, `submit` refuses at once and says when to retry, instead of letting the queue grow. A run that has
filled it does not keep others out: its newest submissions make room, and are refused in the same way. A draining pool
refuses new work, finishes what it has accepted, and then ends every zygote. What is not finished in time is given back
unjudged, so that nobody waits for an answer that never comes.

If a client's deadline passes because no slot was free, this is not a failure of the judge, and says nothing about the
program. Such a submission is given back unjudged (`Overdue`), and can be sent again. The answer is `error` only if
judging took longer than it may, or if its client left it too little time to begin with.

A slot that cannot start its zygote leaves the work to the others and keeps trying. What failed on one slot is tried
once more on another. If no slot can judge, the answer is `error`. Such a quick judge would attract work, so `failing_s`
reports it, and the server then asks for no more.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from deepcoder_contracts.judge import JudgeResponse
from deepcoder_sandbox import limits
from deepcoder_sandbox.fair_queue import FairQueue, Full
from deepcoder_sandbox.observer import Observer, Phase
from deepcoder_sandbox.slot import RECYCLE_AFTER_RUNS, Slot
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.zygote_process import ZygoteConfig, ZygoteFailed

_log = logging.getLogger("deepcoder_sandbox")

_MAX_RETRY_AFTER_S = 30
_FAILED_STARTS = 3
_START_AGAIN_S = 5.0
_SLOTS_TRIED = 2
_NEWEST_COUNTS = 0.05


class QueueFull(Exception):
    """There is no room for another submission."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"the queue is full: try again in {retry_after_s} s, or at another judge")
        self.retry_after_s = retry_after_s


class Draining(Exception):
    """The judge is stopping: it accepts no more work, or had no time to judge this submission."""


class Overdue(Exception):
    """The client's deadline passed before a slot was free: nothing is known about the program."""

    def __init__(self) -> None:
        super().__init__("not judged: its deadline passed while it waited for a slot: send it again, here or elsewhere")


@dataclass(eq=False)
class _Work:
    submission: Submission
    run: str
    deadline: float | None
    """The client's (monotonic), counted from arrival; None if it counts from when judging begins or there is none."""
    queued_at: float
    waits: bool
    """Whether no slot was free when it arrived."""
    answer: Future[JudgeResponse] = field(default_factory=Future)
    began: float = 0.0
    """When a slot took it."""
    tried: int = 0
    """Number of slots that have failed on it."""


class Pool:
    """Judges submissions on `slots` zygotes at once."""

    def __init__(
        self,
        config: ZygoteConfig,
        slots: int,
        worker: str,
        max_queued: int,
        observer: Observer | None = None,
        recycle_after_runs: int = RECYCLE_AFTER_RUNS,
    ) -> None:
        self.slots = slots
        self._observer = observer or Observer()
        self._changed = threading.Condition()
        """Guards all fields below; notified when there is work, or when a slot's thread ends."""
        self._waiting: FairQueue[_Work] = FairQueue(max_queued)
        self._under_way: set[_Work] = set()
        self._draining = False
        self._mean_s = 0.0
        self._judged = 0
        self._slots = [Slot(config, worker, self._observer, recycle_after_runs) for _ in range(slots)]
        self._present = set(self._slots)
        self._threads = [
            threading.Thread(target=self._work_through, args=(slot,), name=f"slot-{index}", daemon=True)
            for index, slot in enumerate(self._slots)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def busy(self) -> int:
        """Number of slots in use."""
        return len(self._under_way)

    @property
    def queued(self) -> int:
        """Number of submissions that wait for a slot."""
        return len(self._waiting)

    @property
    def oldest_wait_s(self) -> float:
        """Seconds for which the oldest waiting submission has waited; 0 if none waits."""
        with self._changed:
            since = min((work.queued_at for work in self._waiting.heads()), default=None)
        return 0.0 if since is None else time.monotonic() - since

    @property
    def draining(self) -> bool:
        """Whether new work is refused."""
        return self._draining

    @property
    def failing_s(self) -> float:
        """Seconds for which no slot has had a zygote, although each tried three times or more; 0 if one works."""
        known = [slot.failing_since for slot in self._slots if slot.failed_starts >= _FAILED_STARTS]
        since = [moment for moment in known if moment is not None]  # None: its thread has just started one
        if len(since) < self.slots:
            return 0.0
        return time.monotonic() - max(since)

    @property
    def working_slots(self) -> int:
        """Number of slots that can judge, as far as is known."""
        return sum(slot.failed_starts < _FAILED_STARTS for slot in self._slots)

    def submit(self, submission: Submission, queue_counts: bool = True, run: str = "") -> Future[JudgeResponse]:
        """Queue a submission of a run. Raises QueueFull or Draining.

        With `queue_counts` False, for callers that read ahead, a deadline counts from when judging begins.

        The future fails with Draining if the pool is closed before the submission is judged, with QueueFull if it has
        to make room for another run, and with Overdue. Whatever a program or the judge does is an answer. Cancelling
        the future removes the submission from the queue; once judging has begun, it cannot be cancelled.
        """
        now = time.monotonic()
        asked_s = submission.request.deadline_s
        deadline = now + asked_s if asked_s is not None and queue_counts else None
        with self._changed:
            waits = len(self._under_way) + len(self._waiting) >= self.working_slots
            work = _Work(submission, run, deadline, now, waits)
            if self._draining:
                raise Draining("the judge is draining: send this to another")
            try:
                displaced = self._waiting.add(run, work, now)
            except Full:
                raise QueueFull(self.retry_after_s()) from None
            self._changed.notify_all()  # `notify` might wake a slot that leaves the work to others
        if displaced is not None:
            _fail(displaced, QueueFull(self.retry_after_s()))
        return work.answer

    def give_back_overdue(self, answer: Future[JudgeResponse]) -> None:
        """Give back the submission of this answer, whose deadline has passed, if it is still in the queue."""
        with self._changed:
            work = next((work for work in self._waiting if work.answer is answer), None)
            if work is None:
                return
            self._waiting.remove(work.run, work, time.monotonic())
        _fail(work, Overdue())

    def retry_after_s(self) -> int:
        """Return the seconds after which about half of the queue will have been judged."""
        return max(1, min(_MAX_RETRY_AFTER_S, round(len(self._waiting) * self._mean_s / self.slots / 2)))

    def _work_through(self, slot: Slot) -> None:
        try:
            with contextlib.suppress(ZygoteFailed):  # then it tries again before it takes any work
                slot.ensure_zygote()
            while (work := self._next(slot)) is not None:
                run, began = work.run, work.began
                judged = False
                try:
                    judged = self._judge(slot, work)
                finally:
                    del work  # frees its texts while the thread waits for the next one
                    with self._changed:
                        self._waiting.done(run, began, time.monotonic(), judged=judged)
        finally:
            with self._changed:
                self._present.discard(slot)
                self._changed.notify_all()
            slot.close()

    def _next(self, slot: Slot) -> _Work | None:
        """Wait for work and return it; None if none is left. A slot without a zygote tries to start one meanwhile."""
        start_again = time.monotonic() + _START_AGAIN_S
        while True:
            with self._changed:
                may_take = not slot.failed_starts or not self._others_work(slot)
                while may_take and self._waiting:
                    now = time.monotonic()
                    work = self._waiting.take(now)
                    if work.tried or work.answer.set_running_or_notify_cancel():
                        work.began = now
                        self._under_way.add(work)
                        return work
                    self._waiting.done(work.run, now, now, judged=False)
                if self._draining:
                    return None
                self._changed.wait(max(0.0, start_again - time.monotonic()) if slot.failed_starts else None)
            if slot.failed_starts and time.monotonic() >= start_again:
                with contextlib.suppress(ZygoteFailed):
                    slot.start_again()
                start_again = time.monotonic() + _START_AGAIN_S

    def _others_work(self, slot: Slot) -> bool:
        return any(other is not slot and not other.failed_starts for other in self._present)

    def _judge(self, slot: Slot, work: _Work) -> bool:
        """Return whether it was judged here. If not, because it is overdue or the slot failed, the run does not pay."""
        started = time.monotonic()
        if not work.tried:
            self._observer.spent(Phase.QUEUE, started - work.queued_at)
        submission = work.submission
        allowed_s = limits.judging_deadline_s(submission.request.time_limit_s, len(submission.tests))
        deadline = work.deadline or started + (submission.request.deadline_s or allowed_s)
        if started > deadline:
            self._give_back(work)
            return False
        try:
            answer = slot.judge(submission, deadline)
        except Exception as error:  # a defect of ours is the judge's failure too, and the slot continues
            answer = slot.error_answer(submission, f"{type(error).__name__}: {error}", started)
        now = time.monotonic()
        if answer.passed is None and now < deadline and self._hand_on(slot, work):
            return False
        self._learn(now - started)
        queue_counted = work.waits and work.deadline is not None
        if answer.passed is None and now >= deadline and queue_counted and now - started < allowed_s:
            self._give_back(work)  # it lacks the time that it spent in the queue
        else:
            self._settle(work, answer)
        return True

    def _give_back(self, work: _Work) -> None:
        with self._changed:
            if work not in self._under_way:  # given back meanwhile
                return
            self._under_way.discard(work)
        _fail(work, Overdue())

    def _learn(self, seconds: float) -> None:
        """Update the mean seconds of judging, from the first submission on."""
        with self._changed:
            self._judged += 1
            self._mean_s += max(_NEWEST_COUNTS, 1 / self._judged) * (seconds - self._mean_s)

    def _hand_on(self, slot: Slot, work: _Work) -> bool:
        """Queue work that failed here for the other slots, once; return False if there are none."""
        with self._changed:
            work.tried += 1
            if work not in self._under_way or work.tried >= _SLOTS_TRIED or not self._others_work(slot):
                return False
            self._under_way.discard(work)
            self._waiting.put_back(work.run, work)
            self._changed.notify_all()
        return True

    def _settle(self, work: _Work, answer: JudgeResponse) -> None:
        with self._changed:
            if work not in self._under_way:  # given back meanwhile
                return
            self._under_way.discard(work)
        try:
            if answer.passed is None:
                _log.warning(
                    "the judge failed on a submission: %s",
                    answer.verdicts[0].detail,
                    extra={"submission": answer.id, "scoring": work.submission.request.scoring.value},
                )
            self._observer.judged(work.submission, answer)
        except Exception:
            _log.exception("counting an answer failed")
        finally:
            work.answer.set_result(answer)

    def drain(self) -> None:
        """Refuse new work from now on; the slots end when the queue is empty."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    def close(self, timeout_s: float) -> bool:
        """Drain and wait at most `timeout_s`; return whether all accepted work was finished.

        Unfinished work is given back: its futures fail with Draining.
        """
        self.drain()
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        with self._changed:
            left = [*self._under_way, *self._waiting]
            self._under_way.clear()
            self._waiting.clear()
        for work in left:
            _fail(work, Draining("the judge stopped before this was judged: send it to another"))
        return not left


def _fail(work: _Work, reason: Exception) -> None:
    """Fail the future of work that is not judged, unless it was cancelled."""
    if work.answer.running() or work.answer.set_running_or_notify_cancel():
        work.answer.set_exception(reason)
