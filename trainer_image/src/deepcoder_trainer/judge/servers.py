"""Asks `deepcoder-sandbox` servers, a pool's pods or the trainer's own, in the judge's protocol.

- 429 or 503: the judge is full or shutting down, or the submission's deadline passed in its queue. It says how long to
  leave it alone.
- 404 for a test set: the set is uploaded, and the submission is sent again. Other sets may put it out of the judge's
  store in between, so this is repeated after a pause. A judge that still does not find it has failed.
- 400, 409, 413, 422: the judge has read the submission and will never accept it.
- Any other status rejects the request for now, mainly 401 and 403: while a token is rotated, kubelets refresh their
  copies a minute or two apart. A proxy may answer 408.

Ids are idempotency keys: a submission that is sent again while a judge still has it is judged there only once.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
from pydantic import ValidationError

from deepcoder_contracts.judge import RUN_HEADER, VERSION_HEADER, Capacity, JudgeRequest, JudgeResponse
from deepcoder_contracts.manifest import RunIdentity
from deepcoder_trainer.judge.backend import JudgeRefused
from deepcoder_trainer.judge.bearer import Bearer
from deepcoder_trainer.judge.client import Answer, NotTold, answer_with
from deepcoder_trainer.judge.endpoints import Endpoint
from deepcoder_trainer.judge.http import CONNECT_SECONDS, rest_seconds, watched_socket
from deepcoder_trainer.judge.submission import StoredTests, Submission
from deepcoder_trainer.types import Problem

log = logging.getLogger(__name__)

PUT_SECONDS = 60.0
PUT_PAUSES = (0.0, 1.0, 2.0)
"""Seconds before each upload of a test set to a judge that does not find it."""
CAPACITY_SECONDS = 5.0
ANSWER_BYTES = 64 << 20
"""Longest answer that is read: three times the size of verdicts on the largest number of tests."""

_ABSENT_SECONDS = 2.0
_REFUSALS = frozenset({400, 409, 413, 422})


class JudgeServers:
    """The `Transport` to judges that speak the judge's protocol."""

    def __init__(
        self, run: RunIdentity, *, token_file: Path | None = None, connector: aiohttp.BaseConnector | None = None
    ) -> None:
        self._token = Bearer(token_file, "judge.tokenFile") if token_file is not None else None
        self._headers = {RUN_HEADER: f"{run.namespace}/{run.name}/{run.uid[:8]}", "Content-Type": "application/json"}
        # No limit here, because Endpoints bounds what is in flight at each judge. No proxy: judges are in the cluster.
        self._http = aiohttp.ClientSession(
            connector=connector or aiohttp.TCPConnector(limit=0, socket_factory=watched_socket),
            trust_env=False,
            # Judges do not compress. Another server's answer of a few bytes must not expand to gigabytes here.
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
            trace_configs=[_notes_reuse()],
        )

    def refusal(self, problem: Problem) -> str | None:
        """Always None: these judges report themselves what they do not accept."""
        return None

    async def close(self) -> None:
        """Close connections."""
        await self._http.close()

    async def slots(self, judge: Endpoint) -> int | None:
        """Ask a judge once; if it does not tell, the default stays."""
        if judge.asked_capacity:
            return None
        judge.asked_capacity = True
        try:
            reply = await self._send("GET", f"{judge.url}/v1/capacity", None, CAPACITY_SECONDS)
            if reply.ok:
                return Capacity.model_validate_json(reply.body).slots
            judge.asked_capacity = reply.status == 404
        except ValidationError as error:  # a judge of another release; its next answer would be the same
            log.warning("judge %s reports its capacity in an unknown format: %s", judge.url, error)
        except (aiohttp.ClientError, TimeoutError) as error:
            judge.asked_capacity = False
            log.debug("judge %s does not tell its capacity: %s", judge.url, error)
        return None

    async def version(self, judge: Endpoint) -> str:
        """Ask a judge for its code version. Raises NotTold, and JudgeRefused if its release does not report one."""
        reply = await self._asked(judge, "its version")
        if reply.version is not None and reply.ok:
            return reply.version
        if reply.ok or reply.status == 404:
            raise JudgeRefused(
                f"the judge at {judge.url} does not say which code grades (no {VERSION_HEADER} in its answer to GET "
                "/v1/capacity), and results are filed under that: give the pool this release's sandbox image",
                field="judge",
            )
        raise NotTold(f"judge {judge.url} does not tell its version: {self._shown(reply)}")

    async def max_memory_mb(self, judge: Endpoint) -> int | None:
        """Ask a judge for the largest memory limit that it accepts. Raises NotTold."""
        reply = await self._asked(judge, "its largest memory limit")
        if not reply.ok and reply.status != 404:
            raise NotTold(f"judge {judge.url} does not tell its largest memory limit: {self._shown(reply)}")
        try:
            return Capacity.model_validate_json(reply.body).max_memory_mb if reply.ok else None
        except ValidationError:  # a judge of another release
            return None

    async def _asked(self, judge: Endpoint, what: str) -> _Reply:
        """Return a judge's answer about itself. Raises NotTold, with `what` was asked for, if there is none."""
        try:
            return await self._send("GET", f"{judge.url}/v1/capacity", None, CAPACITY_SECONDS)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise NotTold(f"judge {judge.url} does not tell {what}: {type(error).__name__}: {error}") from error

    async def ask(self, judge: Endpoint, submission: Submission) -> Answer:
        """Send the submission, and its tests if the judge lacks them."""
        told = await self._post(judge, submission)
        for pause in PUT_PAUSES:
            if submission.stored is None or not told.unknown_tests:
                break
            await asyncio.sleep(pause)
            told = await self._put_tests(judge, submission.stored) or await self._post(judge, submission)
        if told.unknown_tests:
            return Answer(judged=True, problem=f"it does not find what it was given: {told.answer.problem}")
        return told.answer

    async def _post(self, judge: Endpoint, submission: Submission) -> _Told:
        request, url, seconds = submission.request, f"{judge.url}/v1/judge", submission.answer_seconds
        body = request.model_dump_json(exclude_none=True).encode()
        try:
            try:
                reply = await self._send("POST", url, body, seconds)
            except _StaleConnection:
                reply = await self._send("POST", url, body, seconds)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            # The judge is not there (yet, or any more): no request reached it, so this does not count as a failure.
            return _Told(Answer(rest_seconds=_ABSENT_SECONDS, problem=f"cannot connect: {error}"))
        except (aiohttp.ClientError, TimeoutError, _StaleConnection) as error:
            return _Told(Answer(judged=True, problem=f"{type(error).__name__}: {error}"))
        return self._read(reply, request)

    async def _put_tests(self, judge: Endpoint, tests: StoredTests) -> _Told | None:
        try:
            reply = await self._send("PUT", f"{judge.url}/v1/tests/{tests.sha256}", tests.body(), PUT_SECONDS)
        except (aiohttp.ClientError, TimeoutError) as error:
            return _Told(Answer(judged=True, problem=f"cannot store tests: {type(error).__name__}: {error}"))
        return None if reply.ok else self._read_problem(reply)

    async def _send(self, method: str, url: str, body: bytes | None, seconds: float) -> _Reply:
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        headers = self._headers if self._token is None else {**self._headers, "Authorization": self._token.header()}
        seen = SimpleNamespace(reused=False)
        try:
            async with self._http.request(
                method, url, data=body, headers=headers, timeout=timeout, allow_redirects=False, trace_request_ctx=seen
            ) as reply:
                told = reply.headers
                return _Reply(url, reply.status, told.get("Retry-After"), await _body(reply), told.get(VERSION_HEADER))
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if seen.reused and method == "POST" and not isinstance(error, aiohttp.ClientConnectorError):
                raise _StaleConnection(str(error)) from error
            raise

    def _read(self, reply: _Reply, request: JudgeRequest) -> _Told:
        if not reply.ok:
            return self._read_problem(reply)
        try:
            response = JudgeResponse.model_validate_json(reply.body)
        except ValidationError as error:
            message = error.errors(include_url=False)[0]["msg"]
            return _Told(Answer(judged=True, problem=f"not a judgement: {message}"))
        return _Told(answer_with(response, request))

    def _shown(self, reply: _Reply) -> str:
        text = f"{reply.status}: {reply.body[:500].decode(errors='replace')}"
        return text if self._token is None else self._token.redact(text)

    def _read_problem(self, reply: _Reply) -> _Told:
        text = self._shown(reply)
        if reply.status in (429, 503):
            return _Told(Answer(rest_seconds=rest_seconds(reply.retry_after), problem=text))
        if reply.status == 404:
            return _Told(Answer(problem=text), unknown_tests=True)
        if reply.status in _REFUSALS:
            raise JudgeRefused(f"the judge at {reply.url} answered {text}", field="judge")
        if reply.status >= 500:
            return _Told(Answer(judged=True, problem=text))
        return _Told(Answer(turned_away=True, problem=text))


async def _body(reply: aiohttp.ClientResponse) -> bytes:
    """Return an answer's body. Raises ClientPayloadError if it is longer than any judge's answer."""
    body = bytearray()
    async for chunk in reply.content.iter_any():
        body += chunk
        if len(body) > ANSWER_BYTES:
            raise aiohttp.ClientPayloadError(f"an answer of more than {ANSWER_BYTES >> 20} MiB")
    return bytes(body)


class _StaleConnection(Exception):
    """The peer closed a kept-alive connection just as it was reused, which does not mean that the judge failed."""


def _notes_reuse() -> aiohttp.TraceConfig:
    """Record in a request's trace context that it reused a connection."""

    async def reused(_session: Any, context: SimpleNamespace, _params: Any) -> None:
        context.trace_request_ctx.reused = True

    config = aiohttp.TraceConfig()
    config.on_connection_reuseconn.append(reused)
    return config


@dataclass(frozen=True)
class _Reply:
    url: str
    status: int
    retry_after: str | None
    body: bytes = field(repr=False)
    version: str | None = None
    """Version of the judge's code."""

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


@dataclass(frozen=True)
class _Told:
    """An answer, or the fact that the judge lacks the tests."""

    answer: Answer
    unknown_tests: bool = False
