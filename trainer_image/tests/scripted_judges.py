"""Judges on loopback that do as a test tells them, and a client that asks them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from deepcoder_contracts.judge import RUN_HEADER, JudgeRequest, TestCase
from deepcoder_contracts.manifest import RunIdentity
from deepcoder_trainer.judge.client import JudgeClient
from deepcoder_trainer.judge.endpoints import Endpoints
from deepcoder_trainer.judge.servers import JudgeServers
from deepcoder_trainer.judge.submission import Submission

RUN = RunIdentity(namespace="ns", name="run", uid="01234567-89ab-cdef-0123-456789abcdef")


def client_of(endpoints: Endpoints, *, patience: float = 60.0, token_file: Path | None = None) -> JudgeClient:
    return JudgeClient(endpoints, JudgeServers(RUN, token_file=token_file), patience=patience)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """One judge on loopback; `behave` answers POST /v1/judge, tests are stored."""

    def __init__(self, behave: Handler) -> None:
        self.behave = behave
        self.tests: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.headers: list[str | None] = []
        self.slots: int | None = None
        self.capacity_asked = 0

    async def capacity(self, _: web.Request) -> web.Response:
        self.capacity_asked += 1
        if self.slots is None:
            return web.json_response({"error": "no such route"}, status=404)
        return web.json_response({"slots": self.slots, "busy": 0, "queued": 0, "tier": "Landlock", "limits": {}})

    async def judge(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((await request.json())["id"])
        self.headers.append(request.headers.get(RUN_HEADER))
        return await self.behave(request)

    async def put(self, request: web.Request) -> web.Response:
        self.tests[request.match_info["sha256"]] = await request.read()
        return web.json_response({})


@asynccontextmanager
async def serving(*behaviours: Handler) -> AsyncIterator[tuple[list[Server], list[str]]]:
    servers, urls, runners = [], [], []
    for behave in behaviours:
        server = Server(behave)
        app = web.Application()
        app.router.add_post("/v1/judge", server.judge)
        app.router.add_get("/v1/capacity", server.capacity)
        app.router.add_put("/v1/tests/{sha256}", server.put)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        servers.append(server)
        urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        runners.append(runner)
    try:
        yield servers, urls
    finally:
        for runner in runners:
            await runner.cleanup()


def asking(**fields: object) -> Submission:
    settings = {"id": "g/0/abc", "code": "print(1)", "tests": [TestCase(input="", output="1\n")], **fields}
    return Submission(JudgeRequest(**settings))


def verdict(passed: bool | None, request_id: str = "g/0/abc") -> dict[str, object]:
    name = {True: "passed", False: "wrong_answer", None: "error"}[passed]
    return {
        "id": request_id,
        "passed": passed,
        "verdicts": [{"verdict": name, "seconds": 0.1}],
        "seconds": 0.1,
        "worker": "w",
    }


async def passes(_: web.Request) -> web.Response:
    return web.json_response(verdict(True))


async def errs(_: web.Request) -> web.Response:
    return web.json_response(verdict(None))


async def fails(_: web.Request) -> web.Response:
    return web.json_response(verdict(False))


async def drops(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()
