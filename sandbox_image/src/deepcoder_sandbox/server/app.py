"""Routes of the judge.

Every refusal is a `Problem` with the field at fault. A client that hangs up does not stop its submission: the answer is
kept for when it asks again. Long bodies are read in a thread, so that health, capacity and the answers of others do not
wait for them. A judge that cannot start zygotes is not ready, and after a while not healthy: it would answer `error`
faster than others judge.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler

from deepcoder_contracts.judge import RUN_HEADER, Capacity, JudgeRequest, Kind, Problem, TestCase, Tier
from deepcoder_sandbox import admission
from deepcoder_sandbox.admission import Refused
from deepcoder_sandbox.pool import Draining, Pool, QueueFull
from deepcoder_sandbox.server import auth
from deepcoder_sandbox.server.idempotency import Answers, ContentConflict, content_digest
from deepcoder_sandbox.server.metrics import Metrics
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.tests_store import TestStore, read_set

_RUN = re.compile(r"[^/\s]{1,63}/[^/\s]{1,253}/[^/\s]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DRAIN_RETRY_AFTER_S = "5"
_AT_ONCE_BYTES = 1 << 16

T = TypeVar("T")

UNHEALTHY_AFTER_S = 120.0
"""Seconds without a zygote after which the container is better restarted."""


@dataclass(frozen=True)
class Judge:
    """What the routes work on."""

    pool: Pool
    tier: Tier
    limits: dict[str, bool]
    metrics: Metrics
    tests: TestStore
    answers: Answers
    max_body_bytes: int
    max_memory_mb: int | None = None

    def capacity(self) -> Capacity:
        """Return the judge's load and confinement."""
        return Capacity(
            slots=self.pool.slots, busy=self.pool.busy, queued=self.pool.queued, tier=self.tier, limits=self.limits
        )


_JUDGE = web.AppKey("judge", Judge)


def make_app(judge: Judge, token: str | None) -> web.Application:
    """Return the application; `token` None only behind a Unix socket."""
    app = web.Application(client_max_size=judge.max_body_bytes, middlewares=[_problems, auth.bearer(token)])
    app[_JUDGE] = judge
    app.router.add_post("/v1/judge", _judge)
    app.router.add_put("/v1/tests/{sha256}", _put_tests)
    app.router.add_get("/v1/capacity", _capacity)
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/readyz", _readyz)
    app.router.add_get("/metrics", _metrics)
    return app


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every refusal into its status and a Problem."""
    headers: dict[str, str] = {}
    try:
        response = await handler(request)
    except Refused as refused:
        status, problem = 400, refused.problem()
    except _UnknownTests as unknown:
        status, problem = 404, Problem(error=f"tests_sha256: {unknown}", field="tests_sha256")
    except ContentConflict:
        status = 409
        problem = Problem(error="id: already used in this run with another content: use another id", field="id")
    except web.HTTPRequestEntityTooLarge:
        limit = request.app[_JUDGE].max_body_bytes
        problem = Problem(error=f"body: larger than {limit} bytes: store tests with PUT /v1/tests, or send fewer")
        status, problem = 413, problem.model_copy(update={"field": "body"})
    except QueueFull as full:
        status, problem = 429, Problem(error=str(full))
        headers["Retry-After"] = str(full.retry_after_s)
    except Draining as draining:
        status, problem = 503, Problem(error=str(draining))
        headers["Retry-After"] = _DRAIN_RETRY_AFTER_S
    except web.HTTPException as error:
        status, problem = error.status, Problem(error=error.reason)
        headers.update({name: error.headers[name] for name in ("Allow",) if name in error.headers})
    else:
        return response
    request.app[_JUDGE].metrics.refused(status)
    return web.json_response(text=problem.model_dump_json(), status=status, headers=headers)


class _UnknownTests(Exception):
    """A test set that is not stored here."""


async def _judge(request: web.Request) -> web.Response:
    judge = request.app[_JUDGE]
    run = request.headers.get(RUN_HEADER, "")
    if run and not _RUN.fullmatch(run):
        raise Refused(f"{RUN_HEADER}: needs <namespace>/<name>/<uid8>", RUN_HEADER)
    body = await request.read()
    asked, digest = await _in_thread_if_long(len(body), lambda: _read_request(body))
    key = (run, asked.id)
    answer = judge.answers.find(key, digest)
    if answer is None:
        tests = _tests_of(judge, asked)
        size = sum(len(test.input) + len(test.output) for test in tests) if asked.kind is Kind.FUNCTION else 0
        await _in_thread_if_long(size, lambda: admission.check(asked, tests, judge.max_memory_mb))
        submission, loop = Submission(asked, tests), asyncio.get_running_loop()
        answer = judge.answers.find_or_start(
            key, digest, lambda: asyncio.wrap_future(judge.pool.submit(submission), loop=loop)
        )
    return web.json_response(text=(await asyncio.shield(answer)).model_dump_json())


def _read_request(body: bytes) -> tuple[JudgeRequest, str]:
    asked = admission.parse_request(body)
    return asked, content_digest(asked)


async def _in_thread_if_long(size: int, work: Callable[[], T]) -> T:
    """Do work that takes time in proportion to `size` without keeping the loop from others."""
    return work() if size <= _AT_ONCE_BYTES else await asyncio.to_thread(work)


def _tests_of(judge: Judge, asked: JudgeRequest) -> tuple[TestCase, ...]:
    if asked.tests is not None:
        return tuple(asked.tests)
    tests = judge.tests.get(asked.tests_sha256 or "")
    if tests is None:
        raise _UnknownTests("no such test set here: PUT /v1/tests/<sha256> first, then send this again")
    return tests


async def _put_tests(request: web.Request) -> web.Response:
    sha256 = request.match_info["sha256"]
    if not _DIGEST.fullmatch(sha256):
        raise Refused("sha256: needs 64 lower-case hexadecimal digits", "sha256")
    body = await request.read()
    tests = await _in_thread_if_long(len(body), lambda: read_set(sha256, body))
    request.app[_JUDGE].tests.put(sha256, len(body), tests)
    return web.json_response({"sha256": sha256, "tests": len(tests)})


async def _capacity(request: web.Request) -> web.Response:
    return web.json_response(text=request.app[_JUDGE].capacity().model_dump_json())


async def _healthz(request: web.Request) -> web.Response:
    """False where starting zygotes has failed for long: another container may have better luck."""
    failing_s = request.app[_JUDGE].pool.failing_s
    if failing_s > UNHEALTHY_AFTER_S:
        return web.Response(text=f"no zygote could be started for {failing_s:.0f} s\n", status=503)
    return web.Response(text="ok\n")


async def _readyz(request: web.Request) -> web.Response:
    pool = request.app[_JUDGE].pool
    if pool.draining or pool.failing_s:
        return web.Response(text="draining\n" if pool.draining else "no zygote can be started\n", status=503)
    return web.Response(text="ok\n")


async def _metrics(request: web.Request) -> web.Response:
    return web.Response(
        body=request.app[_JUDGE].metrics.exposition(),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )
