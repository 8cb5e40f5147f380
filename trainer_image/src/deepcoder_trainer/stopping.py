"""The wish to stop: from SIGTERM, from the operator's reply, from `drain`, all one.

Whoever asks first sets the deadline; a later wish can only shorten it. The controller looks at it between two things
it does and bounds what it is doing by it.
"""

from __future__ import annotations

import asyncio


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
