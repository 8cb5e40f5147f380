"""The event loop's lag: measured where it happens, remembered for a minute."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

from deepcoder_operator.loop_lag import BEAT_SECONDS, LONGEST_LAG_SECONDS, RECENT_SECONDS, LoopLag


async def test_callback_that_blocks_the_loop_is_measured() -> None:
    lag = LoopLag(time.monotonic)
    task = asyncio.create_task(lag.run())
    await asyncio.sleep(0)
    blocked = BEAT_SECONDS + 0.4
    time.sleep(blocked)
    async with asyncio.timeout(60):
        while lag.worst < 0.35:
            await asyncio.sleep(0.01)
    task.cancel()


def test_worst_of_the_last_minute_is_told_and_then_forgotten() -> None:
    now = 0.0
    lag = LoopLag(lambda: now)
    for now, value, worst in ((0, 1, 1), (10, 5, 5), (20, 2, 5), (60, 0, 5), (70, 0, 5), (71, 0, 2), (81, 0, 0)):
        lag.note(value)
        assert lag.worst == worst, now


def test_loop_that_was_blocked_for_long_fails_one_probe() -> None:
    now = 0.0
    lag = LoopLag(lambda: now)
    assert lag.check() is None
    lag.note(LONGEST_LAG_SECONDS + 1)
    assert lag.check() == "the event loop was blocked for 31 s and has run again for less than 10 s"
    now = RECENT_SECONDS + 0.5
    lag.note(0)
    assert lag.check() is None
    assert lag.worst == LONGEST_LAG_SECONDS + 1, "scrapes still see it"


def test_loop_that_is_blocked_again_and_again_is_never_alive() -> None:
    now = 0.0
    lag = LoopLag(lambda: now)
    for _ in range(10):
        now += LONGEST_LAG_SECONDS + 1
        lag.note(LONGEST_LAG_SECONDS + 1)
        now += RECENT_SECONDS - 1
        assert lag.check() is not None


def test_single_delay_is_over_before_the_kubelet_restarts_the_operator() -> None:
    """As after a machine's suspension; the chart's probe decides how many failures in a row are too many."""
    chart = Path(__file__).parents[2] / "helm/deepcoder-operator/templates/deployment.yaml"
    probe = re.search(r"livenessProbe:\n.*\n\s+periodSeconds: (\d+)\n.*\n\s+failureThreshold: (\d+)", chart.read_text())
    assert probe is not None
    period, failures = int(probe[1]), int(probe[2])
    assert period == RECENT_SECONDS, "otherwise a probe might miss it"
    assert (LONGEST_LAG_SECONDS + RECENT_SECONDS) / period + 1 < failures
