"""A server that two runs share: the flood of one neither keeps the other out nor costs anybody an answer.

Turns are fair by the time that programs use, so the pool's time passes only while it judges, as much for each program.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from judge_servers import PatientClients, metric, submission

from deepcoder_contracts.judge import RUN_HEADER, Tier
from deepcoder_sandbox.pool import Pool
from deepcoder_sandbox.server.app import Judge, make_app
from deepcoder_sandbox.server.idempotency import Answers
from deepcoder_sandbox.server.memory_budget import MemoryBudget
from deepcoder_sandbox.server.metrics import Metrics
from deepcoder_sandbox.slot import Slot
from deepcoder_sandbox.tests_store import TestStore
from deepcoder_sandbox.zygote_process import ZygoteConfig

MIB = 1 << 20
FLOOD, QUEUE, EARLIER, FEW = 40, 12, 4, 3


class SharedServer:
    """A judge of this process, whose clients come over HTTP."""

    def __init__(self, base_url):
        self._base_url = base_url

    def session(self, run=""):
        headers, no_limit = {RUN_HEADER: run} if run else {}, aiohttp.ClientTimeout(total=None)
        return aiohttp.ClientSession(self._base_url, headers=headers, timeout=no_limit)


@asynccontextmanager
async def shared_server():
    metrics = Metrics()
    pool = Pool(ZygoteConfig(), 1, "here", QUEUE, metrics.observer())
    judge = Judge(pool, Tier.LANDLOCK, {}, metrics, TestStore(MIB), Answers(100, MIB), MemoryBudget(8 * MIB), MIB)
    runner = web.AppRunner(make_app(judge, None), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield pool, SharedServer(f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        closed = await asyncio.to_thread(pool.close, 30)
        await runner.cleanup()
    assert closed


@pytest.fixture
def judged(monkeypatch, clock):
    """Programs in the order in which they were judged, each for a tenth of a second of the pool's time."""
    judged, judge = [], Slot.judge

    def judge_for_a_tenth(slot, submission, deadline):
        answer = judge(slot, submission, time.monotonic() + 60)
        clock.sleep(0.1)
        judged.append(submission.request.id)
        return answer

    monkeypatch.setattr(Slot, "judge", judge_for_a_tenth)
    return judged


@pytest.fixture
def held(monkeypatch, judged):
    """The slot stays busy with what it has judged as number EARLIER, until this is set."""
    may_go_on, judge = threading.Event(), Slot.judge

    def judge_and_hold(slot, submission, deadline):
        answer = judge(slot, submission, deadline)
        if len(judged) == EARLIER:
            assert may_go_on.wait(120), "nobody has let it go on"
        return answer

    monkeypatch.setattr(Slot, "judge", judge_and_hold)
    yield may_go_on
    may_go_on.set()


@pytest.fixture
def came(monkeypatch):
    """How many submissions of each run have come to the pool, whatever it did with them."""
    came, submit = Counter(), Pool.submit

    def submit_and_count(pool, submission, *rest, run="", **options):
        try:
            return submit(pool, submission, *rest, run=run, **options)
        finally:
            came[run] += 1

    monkeypatch.setattr(Pool, "submit", submit_and_count)
    return came


async def until(condition, *tasks):
    async with asyncio.timeout(100):
        while not condition():
            assert not any(task.done() for task in tasks)
            await asyncio.sleep(0.01)


async def test_run_beside_a_flood_is_let_in_at_once_and_judged_in_its_turn_and_nothing_is_lost(judged, held, came):
    async with shared_server() as (pool, server):
        flood = PatientClients(server, 240, run="ns/flood/00000001")
        few = PatientClients(server, 240, run="ns/few/00000002")
        bodies = [submission(f"flood-{n}", "print(input())", (str(n), str(n))) for n in range(FLOOD)]
        others = [submission(f"few-{n}", "print(input())", ("other", "other")) for n in range(FEW)]
        flooding = asyncio.create_task(flood.judge_all(bodies))
        await until(lambda: len(judged) == EARLIER and pool.queued == QUEUE, flooding)
        asking = asyncio.create_task(few.judge_all(others))
        await until(lambda: came["ns/few/00000002"] >= FEW, flooding, asking)
        held.set()
        assert [answer["passed"] for answer in await asking] == [True] * FEW
        assert few.met["429"] == 0, "there is room for its share, however full the queue"
        last = max(judged.index(body["id"]) for body in others)
        between = last + 1 - EARLIER - FEW
        assert between <= FEW, "about one for each of its own"
        assert [answer["passed"] for answer in await flooding] == [True] * FLOOD
        assert flood.met["429"]
        assert len(judged) == FLOOD + FEW
        async with server.session() as session:
            assert await metric(session, "deepcoder_sandbox_submissions_total") == FLOOD + FEW
            assert await metric(session, "deepcoder_sandbox_oldest_wait_seconds") == 0
            async with session.get("/v1/capacity") as response:
                assert (await response.json())["oldest_wait_s"] == 0
