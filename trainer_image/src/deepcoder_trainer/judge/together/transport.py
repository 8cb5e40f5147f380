"""Asks the hosted interpreter, one execution per submission, and distinguishes its failures from the program's.

What each answer means (`client` decides what follows):

- 200 with an execution whose output holds a report: judged.
- 200 without a report, with `errors`, or with an output of type `error`; an invalid or too long answer; any other
  status of 400 or more; a lost connection; no answer in time: the judge failed. Statuses are not distinguished further,
  because the API promises nothing about them: a 400 must not end a run that 413 and 500 would not end. The submission
  is sent again after a pause that doubles.
- 429 and 503: all submissions pause for as long as it says, because limits belong to the key, not to a submission.
- 401, 402, 403, 408: the request is not admitted, for want of a key that is valid or paid for.

The key is only in the Authorization header. Redirects are not followed, so it goes to no other host.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from deepcoder_contracts import strict
from deepcoder_trainer.judge.backend import JudgeRefused
from deepcoder_trainer.judge.bearer import Bearer
from deepcoder_trainer.judge.client import Answer, answer_with
from deepcoder_trainer.judge.endpoints import Endpoint
from deepcoder_trainer.judge.http import CONNECT_SECONDS, rest_seconds, watched_socket
from deepcoder_trainer.judge.submission import Submission
from deepcoder_trainer.judge.together import report
from deepcoder_trainer.judge.together.job import Job, refusal, scoring_refusal
from deepcoder_trainer.types import Problem

BODY_BYTES = 32 << 20
"""Longest answer in bytes that is read."""
PAUSE_SECONDS = 1.0
"""Seconds before a submission's first retry."""

_ABSENT_SECONDS = 2.0
_NOT_LET_IN = frozenset({401, 402, 403, 408})
_SHOWN = 500
_DIGITS = 16


class NotExecuted(Exception):
    """There is no execution to judge; `answer` says what follows."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.problem)
        self.answer = answer


class TogetherTransport:
    """The `Transport` to Together Code Interpreter."""

    def __init__(self, key_file: Path) -> None:
        """Raises BadConfig if the file has no key."""
        self._key = Bearer(key_file, "judge.together.keyFile")
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, socket_factory=watched_socket), trust_env=False
        )

    async def version(self, judge: Endpoint) -> str:
        """Return the URL and a digest of our code that grades; what runs programs there is unknown."""
        return f"together {judge.url} {_digest(grading_files())}"

    async def max_memory_mb(self, judge: Endpoint) -> None:
        """Always None: the API does not tell."""

    def refusal(self, problem: Problem) -> str | None:
        """Return why programs for this problem can never be judged there, or None."""
        return refusal(problem)

    async def close(self) -> None:
        """Close connections."""
        await self._http.close()

    async def slots(self, judge: Endpoint) -> int | None:
        """Always None: the API does not tell."""
        return None

    async def ask(self, judge: Endpoint, submission: Submission) -> Answer:
        """Execute the program in a new session and compare its output. Raises JudgeRefused."""
        if (reason := scoring_refusal(submission.request.scoring)) is not None:
            raise JudgeRefused(f"{submission.request.id}: {reason}", field="judge.backend")
        job = Job(submission.request, submission.tests)
        try:
            printed, session = await self._execute(judge.url, job)
            response = await asyncio.to_thread(report.judge, job, printed, f"together/{session}")
        except NotExecuted as failure:
            return failure.answer
        except report.BadReport as bad:
            return _failed(str(bad))
        return answer_with(response, submission.request)

    async def _execute(self, base: str, job: Job) -> tuple[str, str]:
        """Return what the job printed, and the session's id. Raises NotExecuted."""
        url = f"{base.rstrip('/')}/tci/execute"
        timeout = aiohttp.ClientTimeout(total=job.deadline_seconds, sock_connect=CONNECT_SECONDS)
        document = {"code": await asyncio.to_thread(job.code), "language": "python"}
        try:
            async with self._http.post(
                url,
                json=document,
                headers={"Authorization": self._key.header()},
                timeout=timeout,
                allow_redirects=False,
                proxy=_proxy(url),
            ) as reply:
                body = await _read(reply)
                if reply.status != 200:
                    raise NotExecuted(self._refused(reply.status, reply.headers.get("Retry-After"), body))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            answer = Answer(rest_seconds=_ABSENT_SECONDS, problem=self._clean(f"cannot connect: {error}"))
            raise NotExecuted(answer) from None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise NotExecuted(_failed(self._clean(f"{type(error).__name__}: {error}"))) from None
        try:
            return _printed(json.loads(body))
        except (ValueError, RecursionError) as error:
            raise NotExecuted(_failed(self._clean(f"not an execution: {error}"))) from None

    def _refused(self, status: int, retry_after: str | None, body: bytes) -> Answer:
        problem = self._clean(f"{status}: {body[:_SHOWN].decode(errors='replace')}")
        if status in (429, 503):
            return Answer(rest_seconds=rest_seconds(retry_after), problem=problem)
        if status in _NOT_LET_IN:
            return Answer(turned_away=True, problem=problem)
        return _failed(problem)

    def _clean(self, text: str) -> str:
        return ascii(self._key.redact(text))[1:-1][:_SHOWN]


def grading_files() -> tuple[Path, ...]:
    """Return the files on which a verdict depends: this package, and the contracts on judging."""
    contracts = Path(strict.__file__).parent
    return (*sorted(contracts.glob("judge*.py")), contracts / "strict.py", *sorted(Path(__file__).parent.glob("*.py")))


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode())
        digest.update(content)
    return f"sha256:{digest.hexdigest()[:_DIGITS]}"


def _failed(problem: str) -> Answer:
    return Answer(judged=True, pause_seconds=PAUSE_SECONDS, problem=problem)


async def _read(reply: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for part in reply.content.iter_chunked(1 << 16):
        body += part
        if len(body) > BODY_BYTES:
            reply.close()
            raise ValueError(f"an answer of more than {BODY_BYTES} bytes")
    return bytes(body)


def _printed(document: Any) -> tuple[str, str]:
    """Return the printed stdout and the session's id. Raises ValueError if the execution did not succeed."""
    if not isinstance(document, dict):
        raise ValueError("the answer is no object")
    if document.get("errors"):
        raise ValueError(f"errors: {json.dumps(document['errors'])[:_SHOWN]}")
    data = document.get("data")
    outputs = data.get("outputs") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(outputs, list):
        raise ValueError("the answer has no data.outputs")
    printed: list[str] = []
    for output in outputs:
        kind, content = (output.get("type"), output.get("data")) if isinstance(output, dict) else (None, None)
        if kind == "error":
            raise ValueError(f"the harness failed there: {str(content)[-_SHOWN:]}")
        if kind == "stdout" and isinstance(content, str):
            printed.append(content)
    session = re.sub(r"[^A-Za-z0-9_-]", "", str(data.get("session_id", "")))[:64]
    return "".join(printed), session


def _proxy(url: str) -> str | None:
    """Return the proxy that the environment names for a host outside the cluster."""
    parts = urlsplit(url)
    if parts.hostname is None or proxy_bypass(parts.hostname):
        return None
    return getproxies().get(parts.scheme)
