"""The last steps of an attempt, all under one deadline.

How the attempt ended is already decided, so the next step follows even if one fails or hangs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from deepcoder_trainer.stopping import Moment, Stop, StopReached

log = logging.getLogger(__name__)


class LastSteps:
    """Does last steps until their deadline, or until a stop leaves no time for them."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._ends_at = 0.0
        """Deadline by the loop's clock."""

    def at_least(self, seconds: float) -> None:
        """Put the deadline off, so that there are `seconds` from now."""
        self._ends_at = max(self._ends_at, asyncio.get_running_loop().time() + seconds)

    async def do(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        """Do one step, `what` in logs."""
        ends = asyncio.timeout_at(self._ends_at)
        try:
            async with ends:
                await self._stop.before(Moment.LEFT, work)
        except StopReached:
            log.warning("%s: no time is left for it", what)
        except Exception as error:
            log.error("%s: %s", what, "it hangs, and is left" if ends.expired() else error)
