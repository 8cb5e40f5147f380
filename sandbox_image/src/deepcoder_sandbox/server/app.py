"""Routes of the judge.

Every refusal, and every defect of ours, is a `Problem`, with the field at fault if there is one. A client that hangs up
does not stop its submission: the answer is kept for when the client asks again. A submission that is still in the queue
at its deadline is given back, with 503 and Retry-After. Long bodies are parsed in a thread, one after the other:
health, capacity and other answers wait for a part of one body at most, and only one body is copied at a time. A judge
that cannot start zygotes is not ready, and after a while not healthy: it would answer `error` faster than others judge.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler

from deepcoder_contracts.judge import (
    RUN_HEADER,
    VERSION_HEADER,
    Capacity,
    JudgeRequest,
    JudgeResponse,
    Kind,
    Problem,
    TestCase,
    Tier,
)
from deepcoder_sandbox import admission
from deepcoder_sandbox.admission import Refused
from deepcoder_sandbox.pool import Draining, Overdue, Pool, QueueFull
from deepcoder_sandbox.server import auth
from deepcoder_sandbox.server.idempotency import Answers, ContentConflict, content_digest
from deepcoder_sandbox.server.memory_budget import MemoryBudget, OverBudget, Share, request_bytes, tests_bytes
from deepcoder_sandbox.server.metrics import Metrics
from deepcoder_sandbox.server.request_body import READ_S, Broken, TooLarge, TooSlow, read_body
from deepcoder_sandbox.server.version import judge_version
from deepcoder_sandbox.submission import Submission
from deepcoder_sandbox.tests_store import StoreFull, TestStore, read_set

_log = logging.getLogger("deepcoder_sandbox")

_RUN = re.compile(r"[^/\s]{1,63}/[^/\s]{1,253}/[^/\s]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DRAIN_RETRY_AFTER_S = "5"
_AT_ONCE_BYTES = 1 << 16

T = TypeVar("T")

UNHEALTHY_AFTER_S = 120.0
"""Seconds without a zygote after which the container should be restarted."""


@dataclass(frozen=True)
class Judge:
    """What the routes share."""

    pool: Pool
    tier: Tier
    limits: dict[str, bool]
    metrics: Metrics
    tests: TestStore
    answers: Answers
    room: MemoryBudget
    max_body_bytes: int
    max_memory_mb: int | None = None
    reader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "reader"))
    """The thread that parses long bodies."""
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a long body is parsed, until there is room for its request."""

    def capacity(self) -> Capacity:
        """Return the judge's load and confinement."""
        return Capacity(
            slots=self.pool.working_slots,
            busy=self.pool.busy,
            queued=self.pool.queued,
            oldest_wait_s=self.pool.oldest_wait_s,
            tier=self.tier,
            limits=self.limits,
            max_memory_mb=self.max_memory_mb,
        )

    def held_bytes(self) -> dict[str, int]:
        """Return the bytes that requests take now, by purpose."""
        return {"submissions": self.room.held, "answers": self.answers.kept_bytes, "stored_tests": self.tests.bytes}


_JUDGE = web.AppKey("judge", Judge)


def make_app(judge: Judge, token: auth.Token | None) -> web.Application:
    """Return the application. `token` may be None behind a Unix socket only."""
    app = web.Application(middlewares=[_problems, auth.bearer(token)])
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
    judge = request.app[_JUDGE]
    try:
        return await handler(request)
    except asyncio.CancelledError:
        raise
    except Exception as error:
        status, problem, headers = _refusal(error, judge)
    judge.metrics.refused(status)
    return web.json_response(text=problem.model_dump_json(), status=status, headers=headers)


def _refusal(error: Exception, judge: Judge) -> tuple[int, Problem, dict[str, str]]:
    """Return status, body and headers of the response to a request that failed."""
    match error:
        case Refused():
            return 400, error.problem(), {}
        case Broken():
            text = f"body: could not be read to its end: {error}: send it whole, encoded as its headers say"
            return 400, Problem(error=text, field="body"), {"Connection": "close"}
        case auth.Unauthorized():
            return 401, Problem(error=str(error)), {"WWW-Authenticate": "Bearer"}
        case _UnknownTests():
            return 404, Problem(error=f"tests_sha256: {error}", field="tests_sha256"), {}
        case TooSlow():
            text = f"body: not received within {READ_S:g} s: send it faster, or store tests with PUT /v1/tests"
            return 408, Problem(error=text, field="body"), {"Connection": "close"}
        case ContentConflict():
            text = "id: already used in this run with another content: use another id"
            return 409, Problem(error=text, field="id"), {}
        case _TestsTooLarge():
            text = f"body: larger than {judge.max_body_bytes} bytes: leave tests out, or raise --max-body-mb"
            return 413, Problem(error=text, field="body"), {}
        case TooLarge():
            text = (
                f"body: larger than {judge.max_body_bytes} bytes: store tests with PUT /v1/tests, send fewer, or raise"
                " --max-body-mb"
            )
            return 413, Problem(error=text, field="body"), {}
        case QueueFull():
            return 429, Problem(error=str(error)), {"Retry-After": str(error.retry_after_s)}
        case OverBudget() | StoreFull():
            what = "the memory for submissions" if isinstance(error, OverBudget) else "the store of tests"
            retry_after_s = judge.pool.retry_after_s()
            text = f"{what} is full: try again in {retry_after_s} s, or at another judge"
            return 429, Problem(error=text), {"Retry-After": str(retry_after_s)}
        case Overdue():
            return 503, Problem(error=str(error)), {"Retry-After": str(judge.pool.retry_after_s())}
        case Draining():
            return 503, Problem(error=str(error)), {"Retry-After": _DRAIN_RETRY_AFTER_S}
        case web.HTTPException():
            kept = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
            return error.status, Problem(error=error.reason), kept
        case _:
            _log.exception("a request failed", exc_info=error)
            return 500, Problem(error=f"the judge has a defect, see its log: {type(error).__name__}"), {}


class _TestsTooLarge(TooLarge):
    """A test set is longer than accepted."""


class _UnknownTests(Exception):
    """A test set is not stored here."""


async def _judge(request: web.Request) -> web.Response:
    judge = request.app[_JUDGE]
    answer = await _find_or_start(judge, request, _run_of(request))
    return web.Response(body=await asyncio.shield(answer), content_type="application/json", charset="utf-8")


def _run_of(request: web.Request) -> str:
    run = request.headers.get(RUN_HEADER, "")
    if run and not _RUN.fullmatch(run):
        raise Refused(f"{RUN_HEADER}: needs <namespace>/<name>/<uid8>", RUN_HEADER)
    return run


async def _find_or_start(judge: Judge, request: web.Request, run: str) -> asyncio.Future[bytes]:
    """Return the future answer to a request, and start judging if needed. Nothing else of the request is kept."""
    share = Share(judge.room, run)
    try:
        asked, digest = await _read_request(judge, request, share)
        answer = judge.answers.find((run, asked.id), digest)
        if answer is not None:
            judge.metrics.repeated()
            return answer
        tests = _borrow_tests(judge, asked)
        share, kept = Share(judge.room, run), share  # from here on the submission holds it
        return await _start(judge, (run, asked.id), digest, asked, tests, kept)
    finally:
        share.release()


async def _read_request(judge: Judge, request: web.Request, share: Share) -> tuple[JudgeRequest, str]:
    """Return the request and its digest. `share` then holds the size of the request, no longer that of the body."""
    body = await read_body(request, share, judge.max_body_bytes)
    async with _turn(judge, len(body)):
        asked, digest, size = await _apart_if_long(judge, len(body), lambda: _parse(body))
        share.resize(size)
    return asked, digest


def _parse(body: bytearray) -> tuple[JudgeRequest, str, int]:
    asked = admission.parse_request(body)
    return asked, content_digest(asked), request_bytes(asked)


async def _start(
    judge: Judge, key: tuple[str, str], digest: str, asked: JudgeRequest, tests: tuple[TestCase, ...], share: Share
) -> asyncio.Future[bytes]:
    """Have a submission judged. It holds its share of the memory and its stored tests until it is answered."""

    def forget(_: asyncio.Future[JudgeResponse] | None = None) -> None:
        share.release()
        if asked.tests_sha256 is not None:
            judge.tests.give_back(asked.tests_sha256)

    try:
        size = tests_bytes(tests) if asked.kind is Kind.FUNCTION else 0
        await _apart_if_long(judge, size, lambda: admission.check(asked, tests, judge.max_memory_mb))
        answer = judge.answers.find(key, digest)  # the same may have been requested meanwhile
        if answer is not None:
            forget()
            return answer
        submitted = judge.pool.submit(Submission(asked, tests), run=key[0])
    except BaseException:
        forget()
        raise
    judged = asyncio.wrap_future(submitted)
    judged.add_done_callback(forget)
    if asked.deadline_s is not None:
        over = judged.get_loop().call_later(asked.deadline_s, judge.pool.give_back_overdue, submitted)
        judged.add_done_callback(lambda _: over.cancel())
    return judge.answers.start(key, digest, judged)


def _turn(judge: Judge, size: int) -> AbstractAsyncContextManager[None]:
    """Return what a long body must wait for: until the previous one is parsed and its request has room, or failed."""
    return judge.reading if size > _AT_ONCE_BYTES else contextlib.nullcontext()


async def _apart_if_long(judge: Judge, size: int, work: Callable[[], T]) -> T:
    """Do work that takes time in proportion to `size`; in a thread if that is large."""
    if size <= _AT_ONCE_BYTES:
        return work()
    return await asyncio.get_running_loop().run_in_executor(judge.reader, work)


def _borrow_tests(judge: Judge, asked: JudgeRequest) -> tuple[TestCase, ...]:
    if asked.tests is not None:
        return tuple(asked.tests)
    tests = judge.tests.borrow(asked.tests_sha256 or "")
    if tests is None:
        raise _UnknownTests("no such test set here: PUT /v1/tests/<sha256> first, then send this again")
    return tests


async def _put_tests(request: web.Request) -> web.Response:
    judge, sha256 = request.app[_JUDGE], request.match_info["sha256"]
    if not _DIGEST.fullmatch(sha256):
        raise Refused("sha256: needs 64 lower-case hexadecimal digits", "sha256")
    share = Share(judge.room, _run_of(request))
    try:
        body = await _test_set_body(request, share, judge.max_body_bytes)
        async with _turn(judge, len(body)):
            tests = await _apart_if_long(judge, len(body), lambda: read_set(sha256, body))
            judge.tests.put(sha256, tests_bytes(tests), tests)
    finally:
        share.release()
    return web.json_response({"sha256": sha256, "tests": len(tests)})


async def _test_set_body(request: web.Request, share: Share, max_bytes: int) -> bytearray:
    try:
        return await read_body(request, share, max_bytes)
    except TooLarge:
        raise _TestsTooLarge from None


async def _capacity(request: web.Request) -> web.Response:
    headers = {VERSION_HEADER: judge_version()}
    return web.json_response(text=request.app[_JUDGE].capacity().model_dump_json(), headers=headers)


async def _healthz(request: web.Request) -> web.Response:
    """Return 503 if zygotes have failed to start for long: another container may do better."""
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
