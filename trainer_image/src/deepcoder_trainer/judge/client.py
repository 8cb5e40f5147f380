"""Submitting programs to judges, and telling a wrong program from a judge that failed.

What becomes of a submission:

- a judgement with `passed` true or false: done;
- an `error` verdict, a 5xx, a lost connection, no answer in time: the judge failed. Another judge is asked, `ERRORS`
  times in all; then the submission comes back unjudged, for quarantine. It is never a wrong answer;
- 429 or 503: the judge is full or leaving. It rests as long as it says, others are asked meanwhile;
- 404 for a test set: it is put there and the submission is sent again;
- 400, 409, 413, 422: the judge has read the submission and will never accept it. `JudgeRefused`, which ends the
  attempt with the judge's own words;
- any other status, 401 and 403 above all: nothing was judged and nobody failed. While a token is rotated, kubelets
  refresh its copies a minute or two apart; a proxy may say 408. It is asked again, less and less often.

Ids are idempotency keys, so a repeated submission is at worst judged twice and never counted twice. `patience` bounds
the whole, from the moment a judge is first asked; waiting for our own other submissions does not count, unless no
judge answers anything for that long: a pool that cannot is no pool.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
from pydantic import ValidationError

from deepcoder_contracts.judge import RUN_HEADER, Capacity, JudgeRequest, JudgeResponse
from deepcoder_contracts.manifest import RunIdentity
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.judge.endpoints import Endpoint, Endpoints, NoJudge
from deepcoder_trainer.judge.submission import QUEUE_SECONDS, StoredTests, Submission

log = logging.getLogger(__name__)

ERRORS = 3
"""Failures of judges after which a submission is given up."""
PATIENCE = 1800.0
"""Most of that, where a stage may stand still for longer."""
CONNECT_SECONDS = 5.0
PUT_SECONDS = 60.0
CAPACITY_SECONDS = 5.0
MAX_REST_SECONDS = 60.0
TOKEN_SECONDS = 1.0
"""Longest time a token is used without a look at its file."""

_REFUSALS = frozenset({400, 409, 413, 422})


class JudgeRefused(BadConfig):
    """The judge will never accept this submission; the message is the judge's."""


@dataclass(frozen=True)
class Judgement:
    """What asking came to."""

    response: JudgeResponse | None
    """None if no judge could say: the sample is to be quarantined."""
    attempts: int
    """Judges that were really asked to judge it."""


class JudgeClient:
    """Sends submissions of one run; safe to use from many coroutines of one event loop."""

    def __init__(
        self,
        endpoints: Endpoints,
        run: RunIdentity,
        *,
        token_file: Path | None = None,
        connector: aiohttp.BaseConnector | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self._endpoints = endpoints
        self._token = _Token(token_file) if token_file is not None else None
        self.patience = patience
        """Seconds after which a submission is given up whatever the reason."""
        self._headers = {RUN_HEADER: f"{run.namespace}/{run.name}/{run.uid[:8]}", "Content-Type": "application/json"}
        # No limit here: Endpoints bounds what is in flight at each judge. No proxy either: judges are neighbours.
        self._http = aiohttp.ClientSession(
            connector=connector or aiohttp.TCPConnector(limit=0), trust_env=False, trace_configs=[_notes_reuse()]
        )
        self.errors = 0
        """Failures of judges so far."""

    async def judge(self, submission: Submission) -> Judgement:
        """Have one program judged."""
        asked = _Asked()
        name = submission.request.id
        try:
            endpoint = await self._endpoints.acquire(patience=self.patience)
            async with asyncio.timeout(self.patience):
                while True:
                    judgement = await self._ask_one(endpoint, submission, asked)
                    if judgement is not None:
                        return judgement
                    endpoint = await self._endpoints.acquire(asked.erred, first=True)
        except (TimeoutError, NoJudge):
            log.warning("no judge for %s within %.0f s", name, self.patience)
        return Judgement(None, asked.attempts)

    async def close(self) -> None:
        """Close connections."""
        await self._http.close()

    async def _ask_one(self, endpoint: Endpoint, submission: Submission, asked: _Asked) -> Judgement | None:
        """What one judge came to, and the judge given back; None: another is to be asked."""
        rest, answered = 0.0, False
        try:
            await self._learn_capacity(endpoint)
            answer = await self._ask(endpoint, submission)
            asked.attempts += answer.judged
            answered = answer.response is not None
            if answer.response is not None:
                return Judgement(answer.response, asked.attempts)
            rest = answer.rest_seconds
            if answer.turned_away:
                asked.turned_away += 1
                rest = min(2.0 ** (asked.turned_away - 1), MAX_REST_SECONDS)
                if not endpoint.resting:  # many may be turned away at once: one line is enough
                    log.warning("judge %s turns submissions away: %s", endpoint.url, answer.problem)
            elif answer.judged:
                self.errors += 1
                asked.erred |= {endpoint.url}
                log.warning("judge %s failed on %s: %s", endpoint.url, submission.request.id, answer.problem)
            return Judgement(None, asked.attempts) if asked.attempts >= ERRORS else None
        finally:
            self._endpoints.release(endpoint, rest_seconds=rest, answered=answered)

    async def _learn_capacity(self, endpoint: Endpoint) -> None:
        """Ask a judge once how much it can do at once; one that does not say keeps what it is given unasked."""
        if endpoint.asked_capacity:
            return
        endpoint.asked_capacity = True
        try:
            reply = await self._send("GET", f"{endpoint.url}/v1/capacity", None, CAPACITY_SECONDS)
            if reply.ok:
                self._endpoints.learnt(endpoint, Capacity.model_validate_json(reply.body).slots)
            else:
                endpoint.asked_capacity = reply.status == 404
        except ValidationError as error:  # of another release: it will not say anything else the next time
            log.warning("judge %s tells its capacity in words unknown here: %s", endpoint.url, error)
        except (aiohttp.ClientError, TimeoutError) as error:
            endpoint.asked_capacity = False
            log.debug("judge %s does not tell its capacity: %s", endpoint.url, error)

    async def _ask(self, endpoint: Endpoint, submission: Submission) -> _Answer:
        answer = await self._post(endpoint, submission.request)
        if answer.unknown_tests and submission.stored is not None:
            problem = await self._put_tests(endpoint, submission.stored)
            answer = await self._post(endpoint, submission.request) if problem is None else problem
        if answer.unknown_tests:
            return _Answer(judged=True, problem=f"it does not find what it was given: {answer.problem}")
        return answer

    async def _post(self, endpoint: Endpoint, request: JudgeRequest) -> _Answer:
        body = request.model_dump_json(exclude_none=True).encode()
        url, seconds = f"{endpoint.url}/v1/judge", request.deadline_s or QUEUE_SECONDS
        try:
            try:
                reply = await self._send("POST", url, body, seconds)
            except _StaleConnection:
                reply = await self._send("POST", url, body, seconds)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            # Not there (yet, or any more): nothing was asked of it, so nothing counts against the submission.
            return _Answer(rest_seconds=2.0, problem=f"cannot connect: {error}")
        except (aiohttp.ClientError, TimeoutError, _StaleConnection) as error:
            return _Answer(judged=True, problem=f"{type(error).__name__}: {error}")
        return _read_answer(reply, request)

    async def _put_tests(self, endpoint: Endpoint, tests: StoredTests) -> _Answer | None:
        try:
            reply = await self._send("PUT", f"{endpoint.url}/v1/tests/{tests.sha256}", tests.body(), PUT_SECONDS)
        except (aiohttp.ClientError, TimeoutError) as error:
            return _Answer(judged=True, problem=f"cannot store tests: {type(error).__name__}: {error}")
        return None if reply.ok else _problem_answer(reply)

    async def _send(self, method: str, url: str, body: bytes | None, seconds: float) -> _Reply:
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        headers = self._headers if self._token is None else {**self._headers, "Authorization": self._token.header()}
        seen = SimpleNamespace(reused=False)
        try:
            async with self._http.request(
                method, url, data=body, headers=headers, timeout=timeout, allow_redirects=False, trace_request_ctx=seen
            ) as reply:
                return _Reply(url, reply.status, reply.headers.get("Retry-After", "1"), await reply.read())
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if seen.reused and method == "POST" and not isinstance(error, aiohttp.ClientConnectorError):
                raise _StaleConnection(str(error)) from error
            raise


class _StaleConnection(Exception):
    """A kept connection was closed by the far side as it was used again: nothing says that the judge failed."""


@dataclass
class _Asked:
    """What has come of a submission so far."""

    attempts: int = 0
    erred: frozenset[str] = frozenset()
    turned_away: int = 0


class _Token:
    """The bearer token: a rotated Secret is in the file, not in our memory, but a file is not read for each request."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._header = ""
        self._read_at: float | None = None

    def header(self) -> str:
        """Value of the Authorization header."""
        now = time.monotonic()
        if self._read_at is None or now - self._read_at >= TOKEN_SECONDS:
            self._header, self._read_at = f"Bearer {self._path.read_text().strip()}", now
        return self._header


def _notes_reuse() -> aiohttp.TraceConfig:
    """Notes in a request's trace context that it went over a kept connection."""

    async def reused(_session: Any, context: SimpleNamespace, _params: Any) -> None:
        context.trace_request_ctx.reused = True

    config = aiohttp.TraceConfig()
    config.on_connection_reuseconn.append(reused)
    return config


@dataclass(frozen=True)
class _Reply:
    url: str
    status: int
    retry_after: str
    body: bytes

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


@dataclass(frozen=True)
class _Answer:
    response: JudgeResponse | None = None
    judged: bool = False
    """Whether this counts as one judging: a response, or a failure of the judge."""
    rest_seconds: float = 0.0
    turned_away: bool = False
    """Not let in: nothing was judged."""
    unknown_tests: bool = False
    problem: str = ""


def _read_answer(reply: _Reply, request: JudgeRequest) -> _Answer:
    if not reply.ok:
        return _problem_answer(reply)
    try:
        response = JudgeResponse.model_validate_json(reply.body)
    except ValidationError as error:
        return _Answer(judged=True, problem=f"not a judgement: {error.errors(include_url=False)[0]['msg']}")
    if response.id != request.id:
        return _Answer(judged=True, problem=f"a judgement of another submission: {response.id}")
    if response.passed is None:
        detail = next((v.detail for v in response.verdicts if v.detail), "verdict error")
        return _Answer(judged=True, problem=detail)
    return _Answer(response, judged=True)


def _problem_answer(reply: _Reply) -> _Answer:
    text = f"{reply.status}: {reply.body[:500].decode(errors='replace')}"
    if reply.status in (429, 503):
        return _Answer(rest_seconds=_retry_after(reply), problem=text)
    if reply.status == 404:
        return _Answer(unknown_tests=True, problem=text)
    if reply.status in _REFUSALS:
        raise JudgeRefused(f"the judge at {reply.url} answered {text}", field="judge")
    if reply.status >= 500:
        return _Answer(judged=True, problem=text)
    return _Answer(turned_away=True, problem=text)


def _retry_after(reply: _Reply) -> float:
    try:
        seconds = float(reply.retry_after)
    except ValueError:  # an HTTP date: rare, and a second is a fair reading
        seconds = 1.0
    return min(max(seconds, 0.1), MAX_REST_SECONDS)
