"""A semaphore whose slots are granted in the order of the requests.

Each freed slot wakes one waiter, so a thousand waiters cost a thousand wake-ups and not a million. The number of slots
may change; a smaller number does not affect holders.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable


class FairSemaphore:
    """A semaphore for one event loop. Call `release` once after each `acquire` that returns."""

    def __init__(self, places: int) -> None:
        self.inside = 0
        self._places = places
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Number of waiters."""
        return len(self._waiting)

    async def acquire(self) -> None:
        """Wait for a slot and take it. Raises the error of a `refuse` in the meantime."""
        if not self._waiting and self.inside < self._places:
            self.inside += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = None
        try:
            await turn
        except asyncio.CancelledError:
            self._waiting.pop(turn, None)
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.release()  # the slot was granted at the moment of the cancellation
            raise

    def release(self) -> None:
        """Give a slot back."""
        self.inside -= 1
        self._admit()

    def resize(self, places: int) -> None:
        """Change the number of slots."""
        self._places = places
        self._admit()

    def refuse(self, error: Callable[[], Exception]) -> None:
        """Raise an error in all waiters, each with its own exception object."""
        waiting, self._waiting = self._waiting, OrderedDict()
        for turn in waiting:
            if not turn.done():
                turn.set_exception(error())

    def _admit(self) -> None:
        while self._waiting and self.inside < self._places:
            turn, _ = self._waiting.popitem(last=False)
            if not turn.done():
                self.inside += 1
                turn.set_result(None)
