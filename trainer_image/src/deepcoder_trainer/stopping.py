"""The request to stop, from SIGTERM, the operator's reply or `drain`, and how the remaining time is used.

    ASKED ──────────────────► SETTLED ──────────────► REPORTED ─────► SAVED ─────────────────► LEFT
    weights aside, uploaded;  the rest of the         the manifest,   exit record, metrics and
    rollouts in flight let    checkpoint; metrics     the commit      samples again, actors
    finish meanwhile          and samples before it                   closed

The first request sets the moments. A later request can only bring them forward, which wakes everything that waits. No
other code computes a deadline: work that must not outlast a moment runs as `stop.before(moment, work)`, which ends it
when the moment comes. Work that cannot be ended is left behind after a few seconds.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")

COMMIT_SECONDS = 30.0
"""Time between SETTLED and SAVED, for the rest of the checkpoint: pipeline state, metrics, samples, manifest."""
COMMIT_SHARE = 0.25
"""Upper bound of that time as a share of the whole stop."""
MANIFEST_SECONDS = 5.0
"""Time between REPORTED and SAVED, for the manifest; at most half of the time for the commit."""
LEAVE_SECONDS = 25.0
"""Time after the checkpoint for everything else. Pods get 30 s more than the trainer's drain time."""
CANCEL_SECONDS = 3.0
"""How long to wait for cancelled work."""
DRAIN_SIGNAL = signal.SIGUSR1
"""The signal that `drain` sends. Several of them count as one request."""


class Moment(Enum):
    """The moments of a stop, in this order."""

    ASKED = "asked"
    """A stop was requested; nothing new starts."""
    SETTLED = "settled"
    """Deadline for rollouts in flight."""
    REPORTED = "reported"
    """Deadline for storing metrics and samples before the checkpoint."""
    SAVED = "saved"
    """Deadline for committing the checkpoint."""
    LEFT = "left"
    """Deadline for everything else; the process ends."""


class StopReached(Exception):
    """A moment of the stop came before the work was done."""

    def __init__(self, moment: Moment, reason: str) -> None:
        super().__init__(reason)
        self.moment = moment


class Stop:
    """A request to stop. Once made, it cannot be withdrawn."""

    def __init__(self) -> None:
        self._at = dict.fromkeys(Moment, math.inf)
        self._changed = asyncio.Event()
        self.reason = ""
        self.signalled = False
        """Whether a signal has been received; set by the signal handler."""

    @property
    def requested(self) -> bool:
        """Whether a stop was requested."""
        return self._at[Moment.ASKED] < math.inf

    def request(self, seconds: float, reason: str) -> None:
        """Request a stop with `seconds` for saving. It has no effect if an earlier request ends sooner."""
        now = asyncio.get_running_loop().time()
        saved = now + seconds
        if saved >= self._at[Moment.SAVED]:
            return
        self.reason = self.reason or reason
        commit = min(COMMIT_SECONDS, COMMIT_SHARE * seconds)
        self._at = {
            Moment.ASKED: min(now, self._at[Moment.ASKED]),
            Moment.SETTLED: min(self._at[Moment.SETTLED], saved - commit),
            Moment.REPORTED: min(self._at[Moment.REPORTED], saved - min(MANIFEST_SECONDS, commit / 2)),
            Moment.SAVED: saved,
            Moment.LEFT: saved + LEAVE_SECONDS,
        }
        self._changed.set()
        self._changed = asyncio.Event()

    def seconds_left(self, moment: Moment = Moment.SAVED) -> float:
        """Return the time until a moment, never negative, and infinite without a request."""
        return max(0.0, self._at[moment] - asyncio.get_running_loop().time())

    def check(self) -> None:
        """Raise StopReached if a stop was requested."""
        if self.requested:
            raise StopReached(Moment.ASKED, self.reason)

    async def reached(self, moment: Moment) -> None:
        """Wait until a moment has come, even if it is brought forward meanwhile."""
        while (left := self.seconds_left(moment)) > 0:
            try:
                async with asyncio.timeout(left if left < math.inf else None):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def before(self, moment: Moment, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of `work`. If `moment` comes first, cancel `work` and raise StopReached."""
        if self.seconds_left(moment) <= 0:
            work.close()
            raise StopReached(moment, self.reason)
        task = asyncio.create_task(work)
        coming = asyncio.create_task(self.reached(moment))
        try:
            await asyncio.wait({task, coming}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise StopReached(moment, self.reason)
        finally:
            coming.cancel()
            if task.cancel():
                await asyncio.wait({task}, timeout=CANCEL_SECONDS)
                if not task.done():
                    log.warning("cancelled work is still running and is left behind: %s", task.get_coro())
                elif not task.cancelled() and (error := task.exception()) is not None:
                    log.warning("cancelled work failed: %r", error)


@contextmanager
def cancelled_by_signals(task: asyncio.Task[Any]) -> Iterator[None]:
    """Let SIGTERM and SIGINT cancel a task meanwhile: for commands that keep what they know at any moment."""
    loop, numbers = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def stop_on_signals(stop: Stop, seconds: float) -> None:
    """Let SIGTERM and SIGINT request a stop within `seconds`, and a second signal a stop at once.

    A signal after another kind of request (by the operator or a pod's hook) counts as the first signal, so that it does
    not shorten the time of that request. Call this again after anything that installs its own handlers. Ray does at its
    start: its handler for SIGTERM sets an alarm that aborts the process after three seconds, in the middle of a
    checkpoint.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, stop, seconds, number.name)
    loop.add_signal_handler(DRAIN_SIGNAL, stop.request, seconds, "drain")


def _on_signal(stop: Stop, seconds: float, name: str) -> None:
    if stop.signalled:
        log.warning("%s again: exiting now, the newest checkpoint counts", name)
        stop.request(0, name)
    else:
        log.info("%s: saving and leaving within %.0f s", name, seconds)
        stop.request(seconds, name)
    stop.signalled = True
