"""The wish to stop: from SIGTERM, from the operator's reply, from `drain`, all one.

Whoever asks first sets the deadline; a later wish can only shorten it. The controller looks at it between two things
it does and bounds what it is doing by it.
"""

from __future__ import annotations

import asyncio
import logging
import signal

log = logging.getLogger(__name__)


class Stop:
    """Set once, never taken back."""

    def __init__(self) -> None:
        self._requested = asyncio.Event()
        self._deadline = float("inf")
        self.reason = ""

    @property
    def requested(self) -> bool:
        """Whether stopping was asked for."""
        return self._requested.is_set()

    def request(self, seconds: float, reason: str) -> None:
        """Stop within `seconds`."""
        self._deadline = min(self._deadline, asyncio.get_running_loop().time() + seconds)
        self.reason = self.reason or reason
        self._requested.set()

    async def wait(self) -> None:
        """Until it is asked for."""
        await self._requested.wait()

    def seconds_left(self) -> float:
        """Time until the deadline, never negative; infinite while nothing was asked."""
        return max(0.0, self._deadline - asyncio.get_running_loop().time())


def stop_on_signals(stop: Stop, seconds: float) -> None:
    """SIGTERM and SIGINT ask `stop` to stop within `seconds`; a second one at once.

    To be called again after anything that installs handlers of its own. Ray's start does, and its handler for
    SIGTERM sets an alarm that aborts the process after three seconds, in the middle of a checkpoint.
    """

    def on_signal(name: str) -> None:
        if stop.requested:
            log.warning("%s again: leaving now, the newest checkpoint stands", name)
            stop.request(0, name)
        else:
            log.info("%s: saving and leaving within %.0f s", name, seconds)
            stop.request(seconds, name)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
