"""Submitting programs to judges, and telling a wrong program from a judge that failed.

What becomes of a submission:

- a judgement with `passed` true or false: done;
- an `error` verdict, a 5xx, a lost connection, no answer in time: the judge failed. Another judge is asked, `ERRORS`
  times in all; then the submission comes back unjudged, for quarantine. It is never a wrong answer;
- 429 or 503: the judge is full or leaving. It rests as long as it says, others are asked meanwhile;
- 404 for a test set: it is put there and the submission is sent again;
- any other 4xx: asking again cannot help. `JudgeRefused`, which ends the attempt with the judge's own words.

Ids are idempotency keys, so a repeated submission is at worst judged twice and never counted twice. `PATIENCE`
bounds the whole: a pool that cannot answer for that long is no pool.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from pydantic import ValidationError

from deepcoder_contracts.judge import RUN_HEADER, JudgeRequest, JudgeResponse, TestCase, TestSet
from deepcoder_contracts.manifest import RunIdentity
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.judge.endpoints import Endpoint, Endpoints

log = logging.getLogger(__name__)

ERRORS = 3
"""Failures of judges after which a submission is given up."""
PATIENCE = 1800.0
"""Seconds after which a submission is given up whatever the reason, waiting for a free judge included."""
INLINE_BYTES = 16 * 1024
"""Larger test sets are stored at the judge once and named by their digest."""
CONNECT_SECONDS = 5.0
PUT_SECONDS = 60.0
QUEUE_SECONDS = 300.0
"""Allowance for waiting in a judge's queue, on top of what the program may take."""
MAX_REST_SECONDS = 60.0


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
        self._token_file = token_file
        self._patience = patience
        self._headers = {RUN_HEADER: f"{run.namespace}/{run.name}/{run.uid[:8]}"}
        # No limit here: Endpoints bounds what is in flight at each judge. No proxy either: judges are neighbours.
        self._http = aiohttp.ClientSession(connector=connector or aiohttp.TCPConnector(limit=0), trust_env=False)
        self.errors = 0
        """Failures of judges so far."""

    async def judge(self, request: JudgeRequest) -> Judgement:
        """Have one program judged. `request` carries its tests; large sets are sent by digest."""
        attempts = 0
        avoid: frozenset[str] = frozenset()
        try:
            async with asyncio.timeout(self._patience):
                while attempts < ERRORS:
                    endpoint = await self._endpoints.acquire(avoid)
                    rest = 0.0
                    try:
                        answer = await self._ask(endpoint, request)
                        attempts += answer.judged
                        rest = answer.rest_seconds
                        if answer.response is not None:
                            return Judgement(answer.response, attempts)
                        if answer.judged:
                            self.errors += 1
                            avoid |= {endpoint.url}
                            log.warning("judge %s failed on %s: %s", endpoint.url, request.id, answer.problem)
                    finally:
                        self._endpoints.release(endpoint, rest_seconds=rest)
        except TimeoutError:
            log.warning("no judge for %s within %.0f s", request.id, self._patience)
        return Judgement(None, attempts)

    async def close(self) -> None:
        """Close connections."""
        await self._http.close()

    async def _ask(self, endpoint: Endpoint, request: JudgeRequest) -> _Answer:
        tests = request.tests or []
        size = sum(len(t.input) + len(t.output) for t in tests)
        stored = _stored_tests(tests) if size > INLINE_BYTES else None
        if stored is not None:
            request = request.model_copy(update={"tests": None, "tests_sha256": stored.sha256})
        answer = await self._post(endpoint, request)
        if answer.unknown_tests and stored is not None:
            problem = await self._put_tests(endpoint, stored)
            answer = await self._post(endpoint, request) if problem is None else problem
        if answer.unknown_tests:
            return _Answer(judged=True, problem=f"it does not find what it was given: {answer.problem}")
        return answer

    async def _post(self, endpoint: Endpoint, request: JudgeRequest) -> _Answer:
        body = request.model_dump_json(exclude_none=True).encode()
        try:
            reply = await self._send("POST", f"{endpoint.url}/v1/judge", body, request.deadline_s or QUEUE_SECONDS)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            # Not there (yet, or any more): nothing was asked of it, so nothing counts against the submission.
            return _Answer(rest_seconds=2.0, problem=f"cannot connect: {error}")
        except (aiohttp.ClientError, TimeoutError) as error:
            return _Answer(judged=True, problem=f"{type(error).__name__}: {error}")
        return _read_answer(reply, request)

    async def _put_tests(self, endpoint: Endpoint, tests: _StoredTests) -> _Answer | None:
        try:
            reply = await self._send("PUT", f"{endpoint.url}/v1/tests/{tests.sha256}", tests.body, PUT_SECONDS)
        except (aiohttp.ClientError, TimeoutError) as error:
            return _Answer(judged=True, problem=f"cannot store tests: {type(error).__name__}: {error}")
        return None if reply.ok else _problem_answer(reply)

    async def _send(self, method: str, url: str, body: bytes, seconds: float) -> _Reply:
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        async with self._http.request(
            method, url, data=body, headers=self._all_headers(), timeout=timeout, allow_redirects=False
        ) as reply:
            return _Reply(url, reply.status, reply.headers.get("Retry-After", "1"), await reply.read())

    def _all_headers(self) -> dict[str, str]:
        headers = {**self._headers, "Content-Type": "application/json"}
        if self._token_file is not None:
            # Read each time: a rotated Secret is in the file, not in our memory.
            headers["Authorization"] = f"Bearer {self._token_file.read_text().strip()}"
        return headers


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
    text = reply.body[:500].decode(errors="replace")
    if reply.status in (429, 503):
        return _Answer(rest_seconds=_retry_after(reply), problem=text)
    if reply.status == 404:
        return _Answer(unknown_tests=True, problem=text)
    if reply.status >= 500:
        return _Answer(judged=True, problem=f"{reply.status}: {text}")
    raise JudgeRefused(f"the judge at {reply.url} answered {reply.status}: {text}", field="judge")


def _retry_after(reply: _Reply) -> float:
    try:
        seconds = float(reply.retry_after)
    except ValueError:  # an HTTP date: rare, and a second is a fair reading
        seconds = 1.0
    return min(max(seconds, 0.1), MAX_REST_SECONDS)


@dataclass(frozen=True)
class _StoredTests:
    body: bytes
    sha256: str


def _stored_tests(tests: Sequence[TestCase]) -> _StoredTests:
    body = TestSet(tests=list(tests)).model_dump_json().encode()
    return _StoredTests(body, hashlib.sha256(body).hexdigest())
