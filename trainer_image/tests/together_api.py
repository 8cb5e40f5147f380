"""A server that speaks Together Code Interpreter's published protocol, each session a Python of its own on loopback.

`answers` are given before any code is run: what the real API does when it is busy, broken or of another mind.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

KEY = "tgp_v1_0123456789abcdefSECRETSECRETxyzw"
Answering = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class TogetherAPI:
    """The server's state, for a test to look at and to bend."""

    def __init__(self) -> None:
        self.url = ""
        self.key = KEY
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[Answering] = []
        self.executed = 0
        self.running = self.most_running = 0
        self.failed = ""
        """How the session's own Python has ended, if not well."""
        self.forge: Callable[[str], str] = lambda printed: printed
        """What a program that owns the place makes of the output."""

    async def execute(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        if self.answers:
            return await self.answers.pop(0)(request, body)
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": f"Invalid API key: {self.key[:9]}…"}}, status=401)
        if body.get("language") != "python" or not isinstance(body.get("code"), str) or set(body) - _FIELDS:
            return web.json_response({"error": {"message": "validation"}}, status=422)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            document = executed(self.forge(await self._run(body["code"])), f"ses_{len(self.asked)}")
            if self.failed:
                document["data"]["outputs"].append({"type": "error", "data": self.failed})
            return web.json_response(document)
        finally:
            self.running -= 1

    async def _run(self, code: str) -> str:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-", stdin=-1, stdout=-1, stderr=-1, env={"PATH": "/usr/bin:/bin"}
        )
        stdout, stderr = await child.communicate(code.encode())
        self.executed += 1
        self.failed = f"DeadKernel: {child.returncode} {stderr.decode()[-300:]}" if child.returncode else ""
        return stdout.decode()


_FIELDS = {"code", "language", "session_id", "files"}


def executed(printed: str, session: str = "ses_abcDEF123") -> dict[str, Any]:
    """An execution's answer: what was printed comes in several outputs, as a notebook's does."""
    cuts = [printed[i : i + 1000] for i in range(0, len(printed), 1000)]
    outputs: list[dict[str, Any]] = [{"type": "stdout", "data": cut} for cut in cuts]
    outputs.append({"type": "execute_result", "data": {"text/plain": "None"}})
    return {"data": {"session_id": session, "status": "success", "outputs": outputs}, "errors": None}


def job_of(body: dict[str, Any]) -> dict[str, Any]:
    """What a request's code carries for the harness."""
    blob = re.findall(r"b64decode\('([A-Za-z0-9+/=]+)'\)", body["code"])[-1]
    job: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(blob)))
    return job


@asynccontextmanager
async def together_api() -> AsyncIterator[tuple[TogetherAPI, str]]:
    """The server and the base URL of its API."""
    api = TogetherAPI()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/tci/execute", api.execute)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield api, f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()
