"""Which judge is asked next, how many submissions it is given at once, and who waits for how long."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from scripted_judges import Server, asking, client_of, passes, serving, verdict
from virtual_time import in_virtual_time

from deepcoder_contracts.judge import JudgeResponse, TestCase
from deepcoder_trainer.judge.client import Answer, JudgeClient, answer_with
from deepcoder_trainer.judge.endpoints import (
    FEWEST_PER_SLOT,
    LONGEST_WAIT,
    PER_SLOT,
    UNKNOWN_IN_FLIGHT,
    Endpoint,
    Endpoints,
    NoJudge,
)
from deepcoder_trainer.judge.submission import Submission


async def test_a_judge_is_given_what_its_slots_can_do_and_the_rest_waits() -> None:
    gate = asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        await gate.wait()
        return web.json_response(verdict(True, (await request.json())["id"]))

    async with serving(slow) as ([server], urls):
        server.slots = 3
        client = client_of(Endpoints(urls))
        tasks = [asyncio.create_task(client.judge(asking(id=f"g/{n}/abc"))) for n in range(40)]
        async with asyncio.timeout(60):
            while len(server.asked) < 3 * PER_SLOT:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert len(server.asked) == 3 * PER_SLOT
        gate.set()
        assert all(j.response is not None for j in await asyncio.gather(*tasks))
        await client.close()
    assert server.capacity_asked == 1


async def test_a_judge_that_cannot_tell_its_slots_for_now_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tell, answers = Server.capacity, [503]

    async def not_at_first(server: Server, request: web.Request) -> web.Response:
        if answers:
            return web.json_response({"error": "starting"}, status=answers.pop())
        return await tell(server, request)

    monkeypatch.setattr(Server, "capacity", not_at_first)
    async with serving(passes) as ([server], urls):
        server.slots = 3
        endpoints = Endpoints(urls)
        client = client_of(endpoints)
        for _ in range(2):
            await client.judge(asking())
        await client.close()
    assert endpoints.capacity == 3 * PER_SLOT


async def test_a_judge_is_given_few_submissions_that_may_take_long_and_many_that_do_not() -> None:
    endpoints = Endpoints(["http://a"])
    (judge,) = endpoints._all.values()
    endpoints.learnt(judge, 2)

    async def fill(seconds: float) -> int:
        while judge.has_room:
            await endpoints.acquire(seconds=seconds)
        count = judge.in_flight
        for _ in range(count):
            endpoints.release(judge, seconds=seconds)
        assert (judge.in_flight, judge.held_seconds) == (0, 0)
        return count

    assert await fill(1.0) == 2 * PER_SLOT
    assert await fill(1000.0) == 2 * FEWEST_PER_SLOT
    between = await fill(LONGEST_WAIT / 4)
    assert 2 * FEWEST_PER_SLOT < between < 2 * PER_SLOT
    assert (between - 1) * LONGEST_WAIT / 4 / 2 <= LONGEST_WAIT, "whoever came last waits no longer than it may"


async def test_a_short_submission_behind_long_ones_waits_here_until_one_is_judged() -> None:
    gates = {name: asyncio.Event() for name in ("g/0/abc", "g/1/abc", "g/2/abc")}

    async def slow(request: web.Request) -> web.Response:
        name = (await request.json())["id"]
        await gates[name].wait()
        return web.json_response(verdict(True, name))

    async with serving(slow) as ([server], urls):
        server.slots = 1
        client = client_of(Endpoints(urls))
        tests = [TestCase(input="", output="1\n")] * 100
        await client._transport.slots(next(iter(client._endpoints._all.values())))
        long = [asyncio.create_task(client.judge(asking(id=f"g/{n}/abc", tests=tests))) for n in range(2)]
        async with asyncio.timeout(60):
            while len(server.asked) < 2:
                await asyncio.sleep(0.01)
        short = asyncio.create_task(client.judge(asking(id="g/2/abc")))
        await asyncio.sleep(0.1)
        assert len(server.asked) == 2
        gates["g/0/abc"].set()
        gates["g/2/abc"].set()
        assert (await short).response is not None
        assert not long[1].done()
        gates["g/1/abc"].set()
        await asyncio.gather(*long)
        await client.close()


class TakesItsTime:
    """A transport to judges that answer after 40 seconds."""

    async def slots(self, judge: Endpoint) -> None: ...

    async def ask(self, judge: Endpoint, submission: Submission) -> Answer:
        await asyncio.sleep(40)
        return answer_with(JudgeResponse.model_validate(verdict(True, submission.request.id)), submission.request)


@in_virtual_time
async def test_waiting_for_our_own_other_submissions_does_not_count_against_patience() -> None:
    client = JudgeClient(Endpoints(["http://a"]), TakesItsTime(), patience=150)  # type: ignore[arg-type]
    tasks = [asyncio.create_task(client.judge(asking(id=f"g/{n}/abc"))) for n in range(5 * UNKNOWN_IN_FLIGHT)]
    judgements = await asyncio.gather(*tasks)
    assert asyncio.get_running_loop().time() > client.patience
    assert all(j.response is not None for j in judgements), "the last waited longer than its patience"


@in_virtual_time
async def test_who_waits_is_told_when_no_judge_answers_anything_for_too_long() -> None:
    endpoints = Endpoints(["http://a"])
    held = [await endpoints.acquire() for _ in range(UNKNOWN_IN_FLIGHT)]
    waiting = [asyncio.create_task(endpoints.acquire(patience=300)) for _ in range(2)]
    await asyncio.sleep(200)
    endpoints.release(held.pop(), answered=True)
    assert (await waiting[0]).url == "http://a"
    await asyncio.sleep(200)
    assert not waiting[1].done(), "a judge answered meanwhile"
    with pytest.raises(NoJudge):
        await waiting[1]


@in_virtual_time
async def test_who_waits_without_end_or_no_longer_keeps_nobody_from_being_told() -> None:
    endpoints = Endpoints(["http://a"])
    for _ in range(UNKNOWN_IN_FLIGHT):
        await endpoints.acquire()
    endless = asyncio.create_task(endpoints.acquire())
    gone, told = (asyncio.create_task(endpoints.acquire(patience=300)) for _ in range(2))
    await asyncio.sleep(1)
    gone.cancel()
    async with asyncio.timeout(600):
        with pytest.raises(NoJudge):
            await told
    assert not endless.done()
    endless.cancel()


async def test_a_submission_that_was_asked_before_goes_before_those_that_were_not() -> None:
    endpoints = Endpoints(["http://a"])
    held = [await endpoints.acquire() for _ in range(UNKNOWN_IN_FLIGHT)]
    new = asyncio.create_task(endpoints.acquire())
    await asyncio.sleep(0)
    again = asyncio.create_task(endpoints.acquire(first=True))
    await asyncio.sleep(0)
    endpoints.release(held.pop())
    await again
    assert not new.done()
    new.cancel()


async def test_load_is_spread_over_judges() -> None:
    gate = asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        await gate.wait()
        return web.json_response(verdict(True))

    async with serving(slow, slow) as (servers, urls):
        client = client_of(Endpoints(urls))
        tasks = [asyncio.create_task(client.judge(asking())) for _ in range(10)]
        while sum(len(s.asked) for s in servers) < 10:
            await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*tasks)
        await client.close()
    assert [len(s.asked) for s in servers] == [5, 5]


async def test_who_waits_for_a_judge_is_served_in_order_and_a_cancelled_one_takes_none() -> None:
    endpoints = Endpoints(["http://a"])
    held = [await endpoints.acquire() for _ in range(UNKNOWN_IN_FLIGHT)]
    waiting = [asyncio.create_task(endpoints.acquire()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    endpoints.release(held.pop())
    await asyncio.gather(waiting[0], return_exceptions=True)
    await asyncio.sleep(0)
    assert [w.done() for w in waiting] == [True, True, False]
    endpoints.release(held.pop())
    assert (await waiting[2]).url == "http://a"
    assert endpoints._all["http://a"].in_flight == UNKNOWN_IN_FLIGHT


async def test_a_submission_that_failed_at_one_judge_does_not_hold_up_those_behind_it() -> None:
    endpoints = Endpoints(["http://a", "http://b"])
    held = [await endpoints.acquire() for _ in range(2 * UNKNOWN_IN_FLIGHT)]
    picky = asyncio.create_task(endpoints.acquire(frozenset({"http://a"})))
    plain = asyncio.create_task(endpoints.acquire())
    await asyncio.sleep(0)
    endpoints.release(next(e for e in held if e.url == "http://a"))
    assert (await plain).url == "http://a"
    assert not picky.done()
    endpoints.release(next(e for e in held if e.url == "http://b"))
    assert (await picky).url == "http://b"
