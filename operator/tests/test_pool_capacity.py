"""Asking judges for their load: over real sockets, with the token, not too often, and never trusting the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from deepcoder_operator.domain.pool_plan import JudgeLoad, JudgePod
from deepcoder_operator.sandbox.capacity import CapacityPoller

TOKEN = "secret"
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


@pytest.fixture
async def judge() -> AsyncIterator[Judge]:
    judge = Judge()
    app = web.Application()
    app.router.add_get("/v1/capacity", judge.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    judge.port = runner.addresses[0][1]
    yield judge
    await runner.cleanup()


def pod(**changes: object) -> JudgePod:
    values: dict[str, object] = {"ready": True, "address": "127.0.0.1"}
    return JudgePod("p", "uid", 0, "hash", 0.0, **{**values, **changes})  # type: ignore[arg-type]


@asynccontextmanager
async def polling(judge: Judge, now: list[float]) -> AsyncIterator[CapacityPoller]:
    poller = CapacityPoller(lambda: now[0], judge.port)
    yield poller
    await poller.close()


async def test_judge_is_asked_at_most_once_a_second_and_its_answer_serves_a_while(judge: Judge) -> None:
    now = [0.0]
    async with polling(judge, now) as poller:
        assert await poller.poll([pod()], TOKEN) == {"uid": JudgeLoad(4, 3, 7)}
        now[0] = 0.9
        assert await poller.poll([pod()], TOKEN) == {"uid": JudgeLoad(4, 3, 7)}
        assert judge.asked == 1
        now[0] = 1.0
        await poller.poll([pod()], TOKEN)
        assert judge.asked == 2


async def test_wait_of_the_oldest_program_is_read_where_a_judge_tells_it(judge: Judge) -> None:
    judge.body = GOOD.replace("{", '{"oldest_wait_s": 1.5, ', 1)
    async with polling(judge, [0.0]) as poller:
        assert await poller.poll([pod()], TOKEN) == {"uid": JudgeLoad(4, 3, 7, 1.5)}


async def test_judge_of_a_later_release_that_tells_more_is_understood(judge: Judge) -> None:
    judge.body = GOOD.replace("{", '{"of_later": 1, ', 1)
    async with polling(judge, [0.0]) as poller:
        assert await poller.poll([pod()], TOKEN) == {"uid": JudgeLoad(4, 3, 7)}


async def test_judge_that_fell_silent_has_no_load_after_a_while(judge: Judge) -> None:
    now = [0.0]
    async with polling(judge, now) as poller:
        await poller.poll([pod()], TOKEN)
        judge.status = 500
        now[0] = 2.0
        assert await poller.poll([pod()], TOKEN) == {"uid": JudgeLoad(4, 3, 7)}
        now[0] = 6.0
        assert await poller.poll([pod()], TOKEN) == {}


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        '{"slots": -1, "busy": 0, "queued": 0, "tier": "Landlock", "limits": {}}',
        '{"slots": 2}',
        "x" * 200_000,
    ],
    ids=["empty", "list", "negative", "incomplete", "huge"],
)
async def test_answer_that_breaks_the_contract_counts_as_silence(judge: Judge, body: str) -> None:
    judge.body = body
    async with polling(judge, [0.0]) as poller:
        assert await poller.poll([pod()], TOKEN) == {}


async def test_wrong_token_and_redirects_get_nothing(judge: Judge) -> None:
    async with polling(judge, [0.0]) as poller:
        assert await poller.poll([pod()], "wrong") == {}
    judge.status, judge.headers = 302, {"Location": f"http://127.0.0.1:{judge.port}/v1/capacity"}
    async with polling(judge, [0.0]) as poller:
        assert await poller.poll([pod()], TOKEN) == {}
    assert judge.asked == 2


async def test_judges_that_are_not_ready_are_not_asked(judge: Judge) -> None:
    async with polling(judge, [0.0]) as poller:
        assert await poller.poll([pod(ready=False), pod(address=None)], TOKEN) == {}
    assert judge.asked == 0


async def test_unreachable_judge_does_not_hold_up_the_others(judge: Judge) -> None:
    async with polling(judge, [0.0]) as poller:
        gone = pod(address="127.0.0.2")
        other = JudgePod("q", "other", 1, "hash", 0.0, ready=True, address="127.0.0.1")
        loads = await poller.poll([gone, other], TOKEN)
    assert loads == {"other": JudgeLoad(4, 3, 7)}
