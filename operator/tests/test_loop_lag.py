"""The event loop's lag: measured where it happens, remembered for a minute."""

from __future__ import annotations

import asyncio
import time

from deepcoder_operator.loop_lag import BEAT_SECONDS, LONGEST_LAG_SECONDS, WINDOW_SECONDS, LoopLag


async def test_callback_that_blocks_the_loop_is_measured() -> None:
    lag = LoopLag(time.monotonic)
    task = asyncio.create_task(lag.run())
    await asyncio.sleep(0)
    blocked = BEAT_SECONDS + 0.4
    time.sleep(blocked)
    async with asyncio.timeout(10):
        while lag.worst < 0.35:
            await asyncio.sleep(0.01)
    task.cancel()


def test_worst_of_the_last_minute_is_told_and_then_forgotten() -> None:
    now = 0.0
    lag = LoopLag(lambda: now)
    for now, value, worst in ((0, 1, 1), (10, 5, 5), (20, 2, 5), (60, 0, 5), (70, 0, 5), (71, 0, 2), (81, 0, 0)):
        lag.note(value)
        assert lag.worst == worst, now


def test_loop_that_was_held_up_for_long_is_not_alive_for_a_minute() -> None:
    now = 0.0
    lag = LoopLag(lambda: now)
    assert lag.check() is None
    lag.note(LONGEST_LAG_SECONDS + 1)
    assert lag.check() == "the event loop was blocked for 31 s within the last minute"
    now = WINDOW_SECONDS + 1
    lag.note(0)
    assert lag.check() is None
