"""A semaphore whose slots are granted in the order of the requests.

Each freed slot wakes one waiter, so a thousand waiters cost a thousand wake-ups and not a million. The number of slots
may change; a smaller number does not affect holders.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable


class FairSemaphore:
    """Use in one event loop. Each `acquire` that returns is followed by one `release`."""

    def __init__(self, places: int) -> None:
        self.inside = 0
        self._places = places
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many wait outside."""
        return len(self._waiting)

    async def acquire(self) -> None:
        """Wait for a place and take it; raises what `refuse` is given meanwhile."""
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
                self.release()  # the place was given in the moment in which we were told to give up
            raise

    def release(self) -> None:
        """Give a place back."""
        self.inside -= 1
        self._admit()

    def resize(self, places: int) -> None:
        """From now on there are so many."""
        self._places = places
        self._admit()

    def refuse(self, error: Callable[[], Exception]) -> None:
        """Send all who wait away, each with an error of its own."""
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
