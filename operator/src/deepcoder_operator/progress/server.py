"""`POST /v1/runs/{namespace}/{name}/progress`: checks in order of their cost, then the board.

Every refusal is a JSON object {error, field?}. Its status says whether to retry: 429 and 503 carry Retry-After; for all
others a retry does not help. The reply has the version of the report. A replica that does not lead checks nothing: it
answers 503 and closes the connection.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from deepcoder_contracts.progress import MAX_BODY_BYTES, ProgressReport
from deepcoder_contracts.server_log import server_log
from deepcoder_contracts.tls_buffers import use_small_tls_buffers
from deepcoder_operator.kube import errors
from deepcoder_operator.progress.admission import NotAdmitted, admit
from deepcoder_operator.progress.authentication import (
    AuthenticationUnavailable,
    Authenticator,
    Subject,
    Unauthenticated,
)
from deepcoder_operator.progress.metrics import REPORTS
from deepcoder_operator.progress.ratelimit import RateLimiter
from deepcoder_operator.progress_board import Heartbeat, ProgressBoard, RunKey

log = logging.getLogger(__name__)

READ_SECONDS = 10.0
"""Time, in seconds, that a caller has to send its body."""

IDLE_SECONDS = 30.0
"""Time, in seconds, after which a connection is closed on which no whole head of a request has arrived."""

RETRY_SECONDS = 5
"""Retry-After of a 503: one heartbeat."""

STANDBY_RETRY_SECONDS = 1
"""Retry-After of a standby: a new connection may reach the replica that leads."""

_REPORTS_A_SECOND, _REPORT_BURST = 1.0, 10.0
_CALLS_A_SECOND, _CALL_BURST = 20.0, 60.0
"""Limits per address for calls that cost a review. Many pods may share the address of a node or a gateway."""

FindPod = Callable[[str, str], Awaitable[Mapping[str, Any] | None]]
"""Returns a pod by namespace and name, or None if there is no such pod in a watched namespace."""


class ProgressServer:
    """The HTTPS side of the progress board."""

    def __init__(
        self,
        board: ProgressBoard,
        authenticator: Authenticator,
        find_pod: FindPod,
        *,
        active: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`active` says whether this process leads. `clock` never goes back; `wall` is in seconds since the epoch."""
        self._active = active
        self._board, self._authenticator, self._find_pod, self._wall = board, authenticator, find_pod, wall
        self._by_peer = RateLimiter(_CALLS_A_SECOND, _CALL_BURST, clock)
        self._by_subject = RateLimiter(_REPORTS_A_SECOND, _REPORT_BURST, clock)
        self._runner: web.AppRunner | None = None

    def application(self) -> web.Application:
        """Return the application with all routes."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/v1/runs/{namespace}/{name}/progress", self._handle)
        return app

    async def start(self, host: str | None, port: int, context: ssl.SSLContext) -> int:
        """Start listening. Returns the port."""
        use_small_tls_buffers()
        self._runner = web.AppRunner(
            self.application(), access_log=None, logger=server_log(), keepalive_timeout=IDLE_SECONDS
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, ssl_context=context)
        await site.start()
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        """Answer the requests in progress, then close."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        response = await self._answer(request) if self._active() else _standby()
        REPORTS.labels(code=str(response.status)).inc()
        return response

    async def _answer(self, request: web.Request) -> web.Response:
        token = _bearer(request)
        if token is None or not self._authenticator.knows(token):
            wait = self._by_peer.wait_seconds(request.remote)
            if wait > 0:
                return _refusal(429, "too many requests without a known token from this address", retry_after=wait)
        if (request.content_length or 0) > MAX_BODY_BYTES:
            return _refusal(413, f"a report has at most {MAX_BODY_BYTES} bytes")
        if token is None:
            return _refusal(401, "send Authorization: Bearer with the pod's projected token")
        key = RunKey(request.match_info["namespace"], request.match_info["name"])
        try:
            subject = await self._authenticator.authenticate(token)
            wait = self._by_subject.wait_seconds(subject.pod_uid)
            if wait > 0:
                return _refusal(429, "too many reports from this pod", retry_after=wait)
            async with asyncio.timeout(READ_SECONDS):
                body = await request.read()
            return await self._take(key, subject, ProgressReport.from_json(body))
        except Unauthenticated as e:
            return _refusal(401, str(e))
        except NotAdmitted as e:
            return _refusal(403, str(e))
        except AuthenticationUnavailable as e:
            log.warning("progress of %s: %s", key, e)
            return _refusal(503, str(e), retry_after=RETRY_SECONDS)
        except errors.KubeError as e:
            log.warning("progress of %s: its pod could not be looked up: %s", key, e)
            return _refusal(503, f"the pod could not be looked up: {e}", retry_after=RETRY_SECONDS)
        except ValidationError as e:
            first = e.errors(include_url=False, include_input=False)[0]
            return _refusal(400, first["msg"], field=".".join(str(part) for part in first["loc"]) or None)
        except (web.RequestPayloadError, ConnectionError):
            return _refusal(400, "the body ended early, or is not encoded as its headers say")
        except web.HTTPRequestEntityTooLarge:
            return _refusal(413, f"a report has at most {MAX_BODY_BYTES} bytes")
        except TimeoutError:
            return _refusal(408, f"the report did not arrive within {READ_SECONDS:.0f} s")

    async def _take(self, key: RunKey, subject: Subject, report: ProgressReport) -> web.Response:
        pod = await self._find_pod(subject.namespace, subject.pod_name) if subject.namespace == key.namespace else None
        admit(subject, pod, key, report.ordinal, self._board.entries.get(key))
        reply = self._board.receive(key, Heartbeat(report, self._wall(), subject.pod_uid))
        if reply is None:
            return _refusal(503, f"run {key} has no live attempt yet", retry_after=RETRY_SECONDS)
        reply = reply.model_copy(update={"schema_version": report.schema_version})
        return web.Response(body=reply.to_json(), content_type="application/json")


def _bearer(request: web.Request) -> str | None:
    """Return the token in a request's header. A header may hold any bytes, a token is ASCII."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" and token.isascii() else None


def _standby() -> web.Response:
    """Refuse a report, because only the leader's board is used. Closes the connection, so that the next one may reach
    the leader."""
    response = _refusal(503, "this replica is on standby, another one leads", retry_after=STANDBY_RETRY_SECONDS)
    response.force_close()
    return response


def _refusal(status: int, error: str, *, field: str | None = None, retry_after: float | None = None) -> web.Response:
    headers = {} if retry_after is None else {"Retry-After": str(math.ceil(retry_after))}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = {"error": error} | ({"field": field} if field else {})
    return web.json_response(body, status=status, headers=headers)
