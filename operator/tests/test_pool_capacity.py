"""Asking judges for their load: over real sockets, with the token, not too often, and never trusting the answer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from deepcoder_operator.domain.pool_plan import JudgeLoad, JudgePod
from deepcoder_operator.sandbox import capacity
from deepcoder_operator.sandbox.capacity import CapacityPoller
from deepcoder_operator.sandbox.observe import judge_pods

TOKEN = "secret"
POOL = "pool"
GOOD = '{"slots": 4, "busy": 3, "queued": 7, "tier": "Landlock", "limits": {"memory": true}}'


@dataclass
class Judge:
    """A server on loopback that answers as told and counts."""

    body: str = GOOD
    status: int = 200
    asked: int = 0
    port: int = 0
    headers: dict[str, str] = field(default_factory=dict)

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401)
        return web.Response(text=self.body, status=self.status, headers=self.headers)


@asynccontextmanager
async def served(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]], first: str, *others: str
) -> AsyncIterator[int]:
    """Have judges answer at these addresses, and return their port."""
    app = web.Application()
    app.router.add_get("/v1/capacity", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, first, 0).start()
    port: int = runner.addresses[0][1]
    for address in others:
        await web.TCPSite(runner, address, port).start()
    try:
        yield port
    finally:
        await runner.cleanup()


@pytest.fixture
async def judge() -> AsyncIterator[Judge]:
    judge = Judge()
    async with served(judge.answer, "127.0.0.1") as judge.port:
        yield judge


def pod(**changes: object) -> JudgePod:
    values: dict[str, object] = {"ready": True, "address": "127.0.0.1"}
    return JudgePod("p", "uid", 0, "hash", 0.0, **{**values, **changes})  # type: ignore[arg-type]


@asynccontextmanager
async def polling(judge: Judge, now: list[float]) -> AsyncIterator[CapacityPoller]:
    poller = CapacityPoller(lambda: now[0], judge.port)
    try:
        yield poller
    finally:
        await poller.close()


async def test_judge_is_asked_at_most_once_a_second_and_its_answer_serves_a_while(judge: Judge) -> None:
    now = [0.0]
    async with polling(judge, now) as poller:
        assert await poller.poll(POOL, [pod()], TOKEN) == {"uid": JudgeLoad(4, 3, 7)}
        now[0] = 0.9
        assert await poller.poll(POOL, [pod()], TOKEN) == {"uid": JudgeLoad(4, 3, 7)}
        assert judge.asked == 1
        now[0] = 1.0
        await poller.poll(POOL, [pod()], TOKEN)
        assert judge.asked == 2


async def test_wait_of_the_oldest_program_is_read_where_a_judge_tells_it(judge: Judge) -> None:
    judge.body = GOOD.replace("{", '{"oldest_wait_s": 1.5, ', 1)
    async with polling(judge, [0.0]) as poller:
        assert await poller.poll(POOL, [pod()], TOKEN) == {"uid": JudgeLoad(4, 3, 7, 1.5)}


async def test_judge_of_a_later_release_that_tells_more_is_understood(judge: Judge) -> None:
    judge.body = GOOD.replace("{", '{"of_later": 1, ', 1)
    async with polling(judge, [0.0]) as poller:
        assert await poller.poll(POOL, [pod()], TOKEN) == {"uid": JudgeLoad(4, 3, 7)}


async def test_judge_that_fell_silent_has_no_load_after_a_while(judge: Judge) -> None:
    now = [0.0]
    async with polling(judge, now) as poller:
        await poller.poll(POOL, [pod()], TOKEN)
        judge.status = 500
        now[0] = 2.0
        assert await poller.poll(POOL, [pod()], TOKEN) == {"uid": JudgeLoad(4, 3, 7)}
        now[0] = 6.0
        assert await poller.poll(POOL, [pod()], TOKEN) == {}


async def test_answer_that_arrives_in_pieces_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy between operator and judge may pass it on so."""
    read, take = asyncio.Event(), aiohttp.StreamReader._read_nowait

    def taken(reader: aiohttp.StreamReader, size: int) -> bytes:
        read.set()
        return take(reader, size)

    monkeypatch.setattr(aiohttp.StreamReader, "_read_nowait", taken)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(GOOD[:20].encode())
        await read.wait()
        await response.write(GOOD[20:].encode())
        return response

    async with served(answer, "127.0.0.1") as port, polling(Judge(port=port), [0.0]) as poller:
        assert await poller.poll(POOL, [pod()], TOKEN) == {"uid": JudgeLoad(4, 3, 7)}


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        '{"slots": -1, "busy": 0, "queued": 0, "tier": "Landlock", "limits": {}}',
        '{"slots": 2}',
        GOOD + " " * 200_000,
        GOOD.replace("7", "7" * 400),
        GOOD.replace("}}", '}, "oldest_wait_s": 1e300}'),
    ],
    ids=["empty", "list", "negative", "incomplete", "huge", "beyond a float", "beyond a status"],
)
async def test_answer_that_breaks_the_contract_counts_as_silence(judge: Judge, body: str) -> None:
    judge.body = body
    async with polling(judge, [0.0]) as poller:
        assert await poller.poll(POOL, [pod()], TOKEN) == {}


async def test_wrong_token_and_redirects_get_nothing(judge: Judge) -> None:
    async with polling(judge, [0.0]) as poller:
        assert await poller.poll(POOL, [pod()], "wrong") == {}
    judge.status, judge.headers = 302, {"Location": f"http://127.0.0.1:{judge.port}/v1/capacity"}
    async with polling(judge, [0.0]) as poller:
        assert await poller.poll(POOL, [pod()], TOKEN) == {}
    assert judge.asked == 2


async def test_judges_that_are_not_ready_are_not_asked(judge: Judge) -> None:
    async with polling(judge, [0.0]) as poller:
        assert await poller.poll(POOL, [pod(ready=False), pod(address=None)], TOKEN) == {}
    assert judge.asked == 0


async def test_pod_that_only_carries_the_pools_label_does_not_get_its_token(judge: Judge) -> None:
    """Whoever may create pods may set the label, and would learn the token."""

    def ready(name: str, owner: str) -> dict[str, Any]:
        owners = [{"uid": owner, "controller": True}]
        metadata = {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z", "ownerReferences": owners}
        status = {"podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}
        return {"metadata": metadata, "status": status}

    pods = judge_pods([ready("ours", "pool"), ready("theirs", "another")], "pool")
    async with polling(judge, [0.0]) as poller:
        assert set(await poller.poll(POOL, pods, TOKEN)) == {"ours"}
    assert judge.asked == 1


async def test_unreachable_judge_does_not_hold_up_the_others(judge: Judge) -> None:
    async with polling(judge, [0.0]) as poller:
        gone = pod(address="127.0.0.2")
        other = JudgePod("q", "other", 1, "hash", 0.0, ready=True, address="127.0.0.1")
        loads = await poller.poll(POOL, [gone, other], TOKEN)
    assert loads == {"other": JudgeLoad(4, 3, 7)}


@dataclass
class Silence:
    """Judges on loopback: those at 127.0.0.2 accept a request and answer once they may, the others at once."""

    port: int = 0
    asked: int = 0
    failing: set[str] = field(default_factory=set)
    """Addresses at which requests fail at once: silence for the poller, without a deadline."""
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        address = request.transport.get_extra_info("sockname")[0]
        if address == "127.0.0.2":
            self.asked += 1
        if address in self.failing:
            return web.Response(status=503)
        if address == "127.0.0.2":
            await self.may_answer.wait()
        return web.Response(text=GOOD)

    def pods(self, count: int) -> list[JudgePod]:
        return [JudgePod(f"s{i}", f"silent-{i}", i, "h", 0.0, ready=True, address="127.0.0.2") for i in range(count)]


def polled_in_background() -> set[str]:
    return {task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("poll s")}


@pytest.fixture
async def silence() -> AsyncIterator[Silence]:
    silence = Silence()
    async with served(silence.answer, "127.0.0.1", "127.0.0.2") as silence.port:
        yield silence
        silence.may_answer.set()


async def test_silent_judges_of_one_pool_hold_up_no_other_pool(
    silence: Silence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be a tenant's own image, or behind a policy."""
    monkeypatch.setattr(capacity, "_DEADLINE_SECONDS", 3600.0)
    poller = CapacityPoller(lambda: 0.0, silence.port)
    theirs = asyncio.create_task(poller.poll("another", silence.pods(200), TOKEN))
    while silence.asked < 32:
        await asyncio.sleep(0.01)
    async with asyncio.timeout(30):
        assert await poller.poll(POOL, [pod()], TOKEN) == {"uid": JudgeLoad(4, 3, 7)}
    theirs.cancel()
    await asyncio.gather(theirs, return_exceptions=True)
    await poller.close()


async def test_pool_waits_for_a_silent_judge_once_and_hears_it_when_it_answers_again(
    silence: Silence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "_DEADLINE_SECONDS", 3600.0)
    now = [0.0]
    poller = CapacityPoller(lambda: now[0], silence.port)
    pods = [*silence.pods(1), pod()]
    silence.failing = {"127.0.0.2"}
    assert set(await poller.poll(POOL, pods, TOKEN)) == {"uid"}
    assert silence.asked == 1
    assert not polled_in_background(), "it is asked once a second, not again at once"
    silence.failing = set()
    for _ in range(3):
        now[0] += 1
        async with asyncio.timeout(30):
            assert set(await poller.poll(POOL, pods, TOKEN)) == {"uid"}
    while silence.asked < 2:
        await asyncio.sleep(0.01)
    assert silence.asked == 2, "while one request to it waits, there is no other"
    silence.may_answer.set()
    async with asyncio.timeout(30):
        while set(await poller.poll(POOL, pods, TOKEN)) != {"uid", "silent-0"}:
            await asyncio.sleep(0.01)
    await poller.close()


async def test_judge_that_failed_once_is_heard_again_however_many_of_another_pool_are_silent(
    silence: Silence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "_DEADLINE_SECONDS", 3600.0)
    now = [0.0]
    poller = CapacityPoller(lambda: now[0], silence.port)
    silence.failing = {"127.0.0.1", "127.0.0.2"}
    theirs = silence.pods(100)
    assert await poller.poll(POOL, [*theirs, pod()], TOKEN) == {}
    silence.failing = set()
    now[0] = 1.0
    assert await poller.poll("another", theirs, TOKEN) == {}
    async with asyncio.timeout(30):
        while await poller.poll(POOL, [pod()], TOKEN) != {"uid": JudgeLoad(4, 3, 7)}:
            await asyncio.sleep(0.01)
    await poller.close()


async def test_silent_judges_of_a_pool_are_polled_so_many_at_a_time_over_all_its_passes(
    silence: Silence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pass would else begin another 32, beside those that still wait for the deadline."""
    monkeypatch.setattr(capacity, "_DEADLINE_SECONDS", 3600.0)
    now = [0.0]
    poller = CapacityPoller(lambda: now[0], silence.port)
    silence.failing = {"127.0.0.2"}
    pods = silence.pods(120)
    assert await poller.poll(POOL, pods, TOKEN) == {}
    silence.failing, silence.asked = set(), 0
    for count in (40, 80, 120):
        now[0] += 1
        await poller.poll(POOL, pods[:count], TOKEN)
        while silence.asked < 32:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # time in which more requests would arrive
        assert silence.asked == 32
    silence.may_answer.set()
    async with asyncio.timeout(30):
        while len(await poller.poll(POOL, pods, TOKEN)) < 120:
            await asyncio.sleep(0.01)
    await poller.close()


async def test_judge_that_accepts_and_never_answers_is_given_up(
    silence: Silence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "_DEADLINE_SECONDS", 0.2)
    poller = CapacityPoller(lambda: 0.0, silence.port)
    async with asyncio.timeout(30):
        assert set(await poller.poll(POOL, [*silence.pods(1), pod()], TOKEN)) == {"uid"}
    await poller.close()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
async def test_judge_is_asked_at_an_address_of_either_family() -> None:
    judge = Judge()
    async with served(judge.answer, "::1") as judge.port, polling(judge, [0.0]) as poller:
        assert await poller.poll(POOL, [pod(address="::1")], TOKEN) == {"uid": JudgeLoad(4, 3, 7)}


async def test_nothing_is_left_of_a_silent_judge_that_is_gone(
    silence: Silence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "_DEADLINE_SECONDS", 3600.0)
    now = [0.0]
    poller = CapacityPoller(lambda: now[0], silence.port)
    silence.failing = {"127.0.0.2"}
    await poller.poll(POOL, silence.pods(2), TOKEN)
    silence.failing = set()
    now[0] = 1.0
    await poller.poll(POOL, silence.pods(2), TOKEN)
    poller.forget(["silent-0"])
    assert {"silent-0"}.isdisjoint([*poller._asked, *poller._answers, *poller._silent]), "judges come and go for ever"
    for left in ({"poll s1"}, set()):
        async with asyncio.timeout(30):
            while polled_in_background() != left:
                await asyncio.sleep(0.01)
        await poller.close()
