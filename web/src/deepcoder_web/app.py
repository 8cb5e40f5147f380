"""The routes. The viewer is identified before anything is looked up, and sees only what kubectl would show them.

Every answer of the API is JSON, and every refusal is {error} with a status that says whether to retry (503 with
Retry-After). The page itself holds no data and is served to everybody. A stream says only that something has changed.
It ends after `STREAM_SECONDS`, or as soon as its viewer loses the permission or the run is gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from deepcoder_client.client import Client
from deepcoder_client.errors import ClientError, Forbidden, NoData, StorageError
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_web import views
from deepcoder_web.access import Access, Unauthenticated, Unavailable, Viewer
from deepcoder_web.metrics import REQUESTS, STREAMS
from deepcoder_web.run_folders import NotAllowed
from deepcoder_web.runs import EVERYTHING, RunKey, Runs, Unreadable
from deepcoder_web.storage import Storage
from deepcoder_web.storage_threads import Busy, Late

log = logging.getLogger(__name__)

STREAM_SECONDS = 3600.0
BEAT_SECONDS = 15.0
"""Longest time between two lines of a stream: proxies close silent connections, and permissions are checked again."""
PAUSE_SECONDS = 1.0
"""Shortest time between two changes that a stream reports: hundreds of runs change many times a second, and each report
makes the page load the whole list."""
STREAMS_OF_ONE = 16
STREAMS_OF_ALL = 512
REVIEW_SECONDS = 10.0
_REVIEWS_AT_ONCE = 16
_LISTS_AT_ONCE = 8
"""Namespaces whose permissions are checked in parallel for one list."""
_STRANGERS_AT_ONCE = 4
_STRANGERS_WAITING = 64
_RETRY_SECONDS = 5

STATIC = Path(str(files("deepcoder_web").joinpath("static")))

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",
}

T = TypeVar("T")
Answer = dict[str, Any] | None
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Dashboard:
    """The page and its API."""

    def __init__(self, client: Client, access: Access, runs: Runs, storage: Storage) -> None:
        self._client, self._access, self._runs, self._storage = client, access, runs, storage
        self._threads = ThreadPoolExecutor(_REVIEWS_AT_ONCE, thread_name_prefix="kube")
        self._for_strangers = ThreadPoolExecutor(_STRANGERS_AT_ONCE, thread_name_prefix="tokens")
        self._encoders = ThreadPoolExecutor(2, thread_name_prefix="json")
        self._strangers = 0
        self._streams: Counter[tuple[str, str]] = Counter()
        """Streams by user name and uid, because other attributes may differ between a user's tokens."""

    def application(self) -> web.Application:
        """Return the application with all routes."""
        app = web.Application(client_max_size=1024, middlewares=[_guarded])
        run = "/api/v1/runs/{namespace}/{name}"
        app.add_routes(
            [
                web.get("/", _index),
                web.static("/static", STATIC),
                web.get("/api/v1/me", self._me),
                web.get("/api/v1/runs", self._list),
                web.get("/api/v1/stream", self._stream),
                web.get(run, self._of_run(self._page)),
                web.get(f"{run}/attempts", self._of_run(self._attempts)),
                web.get(f"{run}/steps", self._of_run(self._steps)),
                web.get(f"{run}/samples/steps", self._of_run(self._sample_steps)),
                web.get(f"{run}/samples", self._of_run(self._samples)),
                web.get(f"{run}/samples/one", self._of_run(self._sample)),
                web.get(f"{run}/lineage", self._of_run(self._lineage)),
                web.get(f"{run}/evaluations", self._of_run(self._evaluations)),
                web.get(f"{run}/pool", self._of_run(self._pool)),
            ]
        )
        return app

    async def _me(self, request: web.Request) -> web.Response:
        return _json({"user": (await self._viewer(request)).name})

    async def _list(self, request: web.Request) -> web.Response:
        viewer = await self._viewer(request)
        shown = await self._listed(viewer)
        rows = [_row(run) for key, run in self._runs.all() if shown is None or key.namespace in shown]
        problems = (
            text for name, text in self._runs.problems.items() if shown is None or name is None or name in shown
        )
        return _json({"runs": rows, "problem": next(problems, None)})

    async def _listed(self, viewer: Viewer) -> set[str] | None:
        """Return the namespaces whose runs, or whose lack of them, the viewer may see; None: all."""
        if await self._may(viewer, "list", ""):
            return None
        names = sorted({key.namespace for key, _ in self._runs.all()} | {name for name in self._runs.problems if name})
        gate = asyncio.Semaphore(_LISTS_AT_ONCE)

        async def asked(name: str) -> bool:
            async with gate:
                return await self._may(viewer, "list", name)

        answers = await asyncio.gather(*(asked(name) for name in names))
        return {name for name, allowed in zip(names, answers, strict=True) if allowed}

    def _of_run(self, answer: Callable[[DeepCoderRun, web.Request], Awaitable[Answer]]) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            _, run = await self._run(request, request.match_info["namespace"], request.match_info["name"])
            document = await answer(run, request)
            if document is None:
                raise _absent("there is no such rollout")
            encoded = await asyncio.get_running_loop().run_in_executor(self._encoders, views.encoded, document)
            return _answer(encoded, self._encoders)

        return handle

    async def _run(self, request: web.Request, namespace: str, name: str) -> tuple[Viewer, DeepCoderRun]:
        """Return viewer and run. A run that they may not get is reported as missing, as by kubectl without `list`."""
        viewer = await self._viewer(request)
        run = self._runs.get(RunKey(namespace, name))
        if not await self._may(viewer, "get", namespace, name):
            raise web.HTTPForbidden(
                text=f"you may not get deepcoderruns.deepcoder.dev {name} in namespace {namespace}: the chart's "
                "role …-view grants it, and so does Kubernetes' own view where the chart adds it there"
            )
        if run is None:
            raise _absent(f"there is no DeepCoderRun {name} in namespace {namespace}")
        if isinstance(run, Unreadable):
            raise web.HTTPUnprocessableEntity(text=run.why)
        return viewer, run

    async def _page(self, run: DeepCoderRun, request: web.Request) -> Answer:
        return views.run_page(run, datetime.now(UTC), self._runs.problem_of(run.metadata.namespace))

    async def _attempts(self, run: DeepCoderRun, request: web.Request) -> Answer:
        return await self._storage.attempts(run)

    async def _steps(self, run: DeepCoderRun, request: web.Request) -> Answer:
        return await self._storage.steps(run, request.query.get("after", ""))

    async def _sample_steps(self, run: DeepCoderRun, request: web.Request) -> Answer:
        return await self._storage.sample_steps(run)

    async def _samples(self, run: DeepCoderRun, request: web.Request) -> Answer:
        stage, step = self._place(run, request)
        offset = _whole(request, "offset") if "offset" in request.query else 0
        return await self._storage.samples(
            run, stage, step, request.query.get("verdict", ""), request.query.get("order", "group"), offset
        )

    async def _sample(self, run: DeepCoderRun, request: web.Request) -> Answer:
        stage, step = self._place(run, request)
        place = _whole(request, "group"), _whole(request, "index")
        draw = _whole(request, "draw") if "draw" in request.query else None
        return await self._storage.sample(run, stage, step, place, draw)

    async def _lineage(self, run: DeepCoderRun, request: web.Request) -> Answer:
        return await self._storage.lineage(run)

    async def _evaluations(self, run: DeepCoderRun, request: web.Request) -> Answer:
        return await self._storage.evaluations(run)

    async def _pool(self, run: DeepCoderRun, request: web.Request) -> Answer:
        return views.pool_document(await self._in_thread(self._threads, lambda: self._client.pool(run)))

    def _place(self, run: DeepCoderRun, request: web.Request) -> tuple[str, int]:
        stage = request.query.get("stage", "")
        if stage not in {s.name for s in run.spec.stages}:
            raise web.HTTPBadRequest(text=f"stage: the run has no stage {stage!r}")
        return stage, _whole(request, "step")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Send a line for each change (topic `runs` for the list, `run` for one run), and empty lines in between."""
        one = "name" in request.query
        if one:
            viewer, run = await self._run(request, request.query.get("namespace", ""), request.query["name"])
            key: RunKey | None = RunKey(run.metadata.namespace, run.metadata.name)
        else:
            viewer, key = await self._viewer(request), None
        user = (viewer.name, viewer.uid)
        if self._streams[user] >= STREAMS_OF_ONE or self._streams.total() >= STREAMS_OF_ALL:
            raise web.HTTPTooManyRequests(text="too many open pages: close some", headers=_again())
        self._streams[user] += 1
        STREAMS.inc()
        try:
            return await self._send(request, key)
        finally:
            STREAMS.dec()
            self._streams[user] -= 1
            if not self._streams[user]:
                del self._streams[user]

    async def _send(self, request: web.Request, key: RunKey | None) -> web.StreamResponse:
        headers = {**HEADERS, "Content-Type": "text/plain; charset=utf-8", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        end = time.monotonic() + STREAM_SECONDS
        with self._runs.waiting(key) as waiter, suppress(ConnectionError):  # the viewer closed the page
            await response.write(b"\n")
            while time.monotonic() < end:
                changed = await waiter.changes(BEAT_SECONDS)
                try:
                    told = await self._told(await self._viewer(request), key, changed)
                except (web.HTTPException, Unauthenticated, Unavailable):
                    break
                if told is None:
                    break
                await response.write(b"run\n" if key and told else b"runs\n" if told else b"\n")
                if changed:
                    await asyncio.sleep(PAUSE_SECONDS)
        return response

    async def _told(self, viewer: Viewer, key: RunKey | None, changed: set[RunKey]) -> bool | None:
        """Whether to send a change to the viewer; None: they may not read this run any more, or it is gone."""
        if key is not None:
            if self._runs.get(key) is None or not await self._may(viewer, "get", *key):
                return None
            return bool(changed)
        if EVERYTHING in changed or (changed and await self._may(viewer, "list", "")):
            return True
        for namespace in {k.namespace for k in changed}:
            if await self._may(viewer, "list", namespace):
                return True
        return False

    async def _viewer(self, request: web.Request) -> Viewer:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated("send Authorization: Bearer with a token of the cluster")
        token = token.strip()
        if self._access.known(token):
            return await self._in_thread(self._threads, lambda: self._access.viewer(token))
        if self._strangers >= _STRANGERS_WAITING:
            raise Unavailable("too many users are signing in: try again in a few seconds")
        self._strangers += 1
        try:
            return await self._in_thread(self._for_strangers, lambda: self._access.viewer(token))
        finally:
            self._strangers -= 1

    async def _may(self, viewer: Viewer, verb: str, namespace: str, name: str = "") -> bool:
        return await self._in_thread(self._threads, lambda: self._access.may(viewer, verb, namespace, name))

    async def _in_thread(self, threads: ThreadPoolExecutor, ask: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(REVIEW_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(threads, ask)
        except TimeoutError:
            raise Unavailable(f"the API server has not answered in {REVIEW_SECONDS:.0f} s") from None


async def _index(request: web.Request) -> web.FileResponse:
    return web.FileResponse(STATIC / "index.html")


@web.middleware
async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Add headers to all responses, and return refusals as JSON."""
    try:
        response = await handler(request)
    except Unauthenticated as error:
        response = _refusal(401, str(error), {"WWW-Authenticate": "Bearer"})
    except (Unavailable, Busy) as error:
        response = _refusal(503, str(error), _again())
    except web.HTTPException as error:
        kept = {k: v for k, v in error.headers.items() if k in ("Retry-After", "Allow", "Location")}
        response = _refusal(error.status, error.text or error.reason, kept)
    except NoData as error:
        response = _refusal(404, str(error))
    except Forbidden as error:
        log.warning("%s: the page's own account: %s", request.path, error)
        response = _refusal(502, f"the dashboard's own account may not do this: {error}")
    except (NotAllowed, Late) as error:
        response = _refusal(502, str(error))
    except StorageError as error:
        log.warning("%s: %s", request.path, error)
        response = _refusal(502, views.storage_problem(error))
    except ClientError as error:
        log.warning("%s: %s", request.path, error)
        response = _refusal(502, str(error))
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception:
        log.exception("%s failed", request.path)
        response = _refusal(500, "the dashboard failed at this; its log says why")
    REQUESTS.labels(code=str(response.status)).inc()
    if not response.prepared:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
    return response


def _row(run: DeepCoderRun | Unreadable) -> dict[str, Any]:
    if isinstance(run, Unreadable):
        return views.unreadable_row(*run.key, run.uid, run.phase, run.created, run.why)
    return views.run_row(run)


def _json(document: dict[str, Any]) -> web.Response:
    return _answer(views.encoded(document))


def _answer(body: bytes, threads: ThreadPoolExecutor | None = None) -> web.Response:
    """Return a JSON response; a large one is compressed in a thread."""
    response = web.Response(
        body=body, content_type="application/json", charset="utf-8", zlib_executor_size=64 << 10, zlib_executor=threads
    )
    response.headers["Cache-Control"] = "no-store"
    response.enable_compression()
    return response


def _refusal(status: int, error: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": error}, status=status, headers=headers)


def _absent(text: str) -> web.HTTPNotFound:
    return web.HTTPNotFound(text=text)


def _again() -> dict[str, str]:
    return {"Retry-After": str(_RETRY_SECONDS)}


def _whole(request: web.Request, name: str) -> int:
    text = request.query.get(name, "")
    if not text.isdecimal() or len(text) > 15:
        raise web.HTTPBadRequest(text=f"{name}: give a whole number, not {text[:40]!r}")
    return int(text)
