"""Asking judges which code grades: it is told, waited for, or refused, and never taken for "none". Asking them how much
memory a program may have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from deepcoder_contracts.judge import VERSION_HEADER
from deepcoder_contracts.manifest import RunIdentity
from deepcoder_trainer.judge import client as client_module
from deepcoder_trainer.judge import servers as servers_module
from deepcoder_trainer.judge.backend import JudgeRefused
from deepcoder_trainer.judge.client import JudgeClient
from deepcoder_trainer.judge.endpoints import Endpoints
from deepcoder_trainer.judge.servers import JudgeServers
from deepcoder_trainer.protocols import SandboxUnavailable

RUN = RunIdentity(namespace="ns", name="run", uid="01234567-89ab-cdef-0123-456789abcdef")
CAPACITY = {"slots": 1, "busy": 0, "queued": 0, "tier": "Landlock", "limits": {}}


@asynccontextmanager
async def judges(*answers: list[web.Response], patience: float = 60) -> AsyncIterator[JudgeClient]:
    """Judges that answer `GET /v1/capacity` so, one after the other, the last one ever again."""
    runners, urls = [], []
    for each in answers:
        left = list(each)

        async def capacity(_: web.Request, left: list[web.Response] = left) -> web.Response:
            answer = left.pop(0) if len(left) > 1 else left[0]
            return web.Response(status=answer.status, text=answer.text, headers=answer.headers)

        app = web.Application()
        app.router.add_get("/v1/capacity", capacity)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
    client = JudgeClient(Endpoints(urls), JudgeServers(RUN), patience=patience)
    try:
        yield client
    finally:
        await client.close()
        for runner in runners:
            await runner.cleanup()


def tells(version: str) -> web.Response:
    return web.json_response(CAPACITY, headers={VERSION_HEADER: version})


def allows(memory_mb: int | None) -> web.Response:
    return web.json_response({**CAPACITY, "max_memory_mb": memory_mb})


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_PAUSE", 0.01)


@pytest.mark.parametrize("status", [401, 429, 500, 503])
async def test_a_judge_that_does_not_tell_its_version_now_is_asked_again(status: int) -> None:
    first = web.Response(status=status)
    async with judges([first, first, tells("sha256:a")]) as client:
        assert await client.version() == "sha256:a"


async def test_another_judge_is_asked_where_one_is_silent() -> None:
    async with judges([web.Response(status=504)], [tells("sha256:a")]) as client:
        assert await client.version() == "sha256:a"


async def test_a_version_that_takes_too_long_to_come_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = [True]

    async def capacity(_: web.Request) -> web.Response:
        if slow:
            slow.pop()
            await asyncio.sleep(1)
        return tells("sha256:a")

    app = web.Application()
    app.router.add_get("/v1/capacity", capacity)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setattr(servers_module, "CAPACITY_SECONDS", 0.2)
    client = JudgeClient(Endpoints([f"http://127.0.0.1:{runner.addresses[0][1]}"]), JudgeServers(RUN), patience=60)
    # The second answer has all the time that a busy machine may need.
    asked = asyncio.create_task(client.version())
    while slow:
        await asyncio.sleep(0.01)
    monkeypatch.setattr(servers_module, "CAPACITY_SECONDS", 30.0)
    assert await asked == "sha256:a"
    await client.close()
    await runner.cleanup()


@pytest.mark.parametrize("nobody", [True, False])
async def test_where_no_judge_tells_its_version_in_time_nothing_is_filed(nobody: bool) -> None:
    async with judges(*([] if nobody else [[web.Response(status=504)]]), patience=1) as client:
        with pytest.raises(SandboxUnavailable, match="no judge said within 1 s"):
            await client.version()


@pytest.mark.parametrize(
    "answer", [web.json_response(CAPACITY), web.Response(status=404)], ids=["no header", "no route"]
)
async def test_a_judge_of_a_release_that_has_no_version_is_refused_with_the_mend(answer: web.Response) -> None:
    async with judges([answer]) as client:
        with pytest.raises(JudgeRefused, match="give the pool this release's sandbox image") as refused:
            await client.version()
    assert refused.value.field == "judge"


@pytest.mark.parametrize("silent", [web.Response(status=401), web.Response(status=503)])
async def test_a_judge_that_does_not_tell_its_largest_memory_limit_now_is_asked_again(silent: web.Response) -> None:
    async with judges([silent, silent, allows(1100)]) as client:
        assert await client.max_memory_mb() == 1100


@pytest.mark.parametrize(
    "answer",
    [allows(None), web.json_response(CAPACITY), web.json_response({"slots": 1}), web.Response(status=404)],
    ids=["no bound", "release without the field", "unknown format", "no route"],
)
async def test_a_judge_that_tells_no_largest_memory_limit_has_none(answer: web.Response) -> None:
    async with judges([answer]) as client:
        assert await client.max_memory_mb() is None


@pytest.mark.parametrize("nobody", [True, False])
async def test_where_no_judge_tells_its_largest_memory_limit_in_time_none_is_known(nobody: bool) -> None:
    async with judges(*([] if nobody else [[web.Response(status=504)]]), patience=1) as client:
        assert await client.max_memory_mb() is None
