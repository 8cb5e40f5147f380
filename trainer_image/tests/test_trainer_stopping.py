"""The moments of a stop: they only come nearer, wake who waits for them, and end what may not outlast them."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal

import pytest
from virtual_time import in_virtual_time

from deepcoder_trainer import stopping
from deepcoder_trainer.stopping import Moment, Stop, StopReached, stop_on_signals


async def forever() -> None:
    await asyncio.Event().wait()


def moments(stop: Stop) -> list[float]:
    return [stop.seconds_left(moment) for moment in Moment]


@in_virtual_time
async def test_moments_come_in_their_order_and_none_before_it_was_asked_for() -> None:
    stop = Stop()
    assert moments(stop) == [math.inf] * 5
    stop.request(300, "test")
    assert moments(stop) == [0, 270, 295, 300, 325]


@in_virtual_time
async def test_a_short_stop_keeps_a_share_for_committing() -> None:
    stop = Stop()
    stop.request(8, "test")
    assert moments(stop) == [0, 6, 7, 8, 33]


@in_virtual_time
async def test_a_later_wish_never_gives_more_time_and_a_shorter_one_takes_some() -> None:
    stop = Stop()
    stop.request(100, "first")
    stop.request(300, "second")
    assert stop.seconds_left() == 100
    stop.request(10, "third")
    assert stop.seconds_left() == 10
    assert stop.reason == "first"


@pytest.mark.parametrize("moment", Moment)
@in_virtual_time
async def test_whoever_waits_for_a_moment_is_woken_when_it_is_moved(moment: Moment) -> None:
    stop = Stop()
    waiting = asyncio.create_task(stop.reached(moment))
    await asyncio.sleep(0)
    stop.request(3600, "operator")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert waiting.done() == (moment is Moment.ASKED)
    stop.request(-stopping.LEAVE_SECONDS, "now")
    async with asyncio.timeout(60):
        await waiting


@in_virtual_time
async def test_work_is_ended_when_its_moment_comes_and_not_begun_after_it() -> None:
    stop = Stop()
    ended: list[bool] = []

    async def work() -> None:
        try:
            await forever()
        finally:
            ended.append(True)

    running = asyncio.create_task(stop.before(Moment.ASKED, work()))
    await asyncio.sleep(0.01)
    stop.request(60, "enough")
    with pytest.raises(StopReached, match="enough"):
        await running
    assert ended == [True]
    with pytest.raises(StopReached):
        await stop.before(Moment.ASKED, work())
    assert ended == [True]
    assert await stop.before(Moment.SAVED, asyncio.sleep(0, "done")) == "done"


@in_virtual_time
async def test_work_that_does_not_let_itself_be_ended_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stopping, "CANCEL_SECONDS", 0.05)
    over = asyncio.Event()

    async def stubborn() -> None:
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                continue

    stop = Stop()
    running = asyncio.create_task(stop.before(Moment.ASKED, stubborn()))
    await asyncio.sleep(0.01)
    stop.request(60, "enough")
    with pytest.raises(StopReached):
        async with asyncio.timeout(60):
            await running
    over.set()
    assert "left behind" in caplog.text


@in_virtual_time
async def test_the_first_signal_after_another_wish_does_not_cut_it_short_and_the_second_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    stop = Stop()
    stop.request(200, "operator")
    stopping._on_signal(stop, 300, "SIGTERM")
    assert stop.seconds_left() == 200
    stopping._on_signal(stop, 300, "SIGTERM")
    assert stop.seconds_left() == 0
    assert stop.seconds_left(Moment.LEFT) == stopping.LEAVE_SECONDS, "the end is still told"


async def test_asking_to_drain_twice_is_asking_once() -> None:
    stop = Stop()
    loop = asyncio.get_running_loop()
    stop_on_signals(stop, 300)
    began, ends = loop.time(), []
    after_the_first = 0.0
    try:
        for number in (stopping.DRAIN_SIGNAL, stopping.DRAIN_SIGNAL, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
            await asyncio.sleep(0.02)
            ends.append(stop._at[Moment.SAVED])
            after_the_first = after_the_first or loop.time()
        assert began + 300 <= ends[0] <= after_the_first + 300
        assert ends[1:3] == ends[:1] * 2
        assert stop.seconds_left() == 0
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, stopping.DRAIN_SIGNAL):
            loop.remove_signal_handler(number)
