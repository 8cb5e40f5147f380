"""The progress endpoint over real TLS on loopback; only the token's review is replaced."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from yarl import URL

from deepcoder_contracts.progress import (
    MAX_BODY_BYTES,
    Desired,
    ExpectedSubmissions,
    ProgressReply,
    ProgressReport,
    TrainerPhase,
)
from deepcoder_operator.domain.names import HEAD, LABEL_ORDINAL, LABEL_ROLE, LABEL_RUN, LABEL_RUN_UID
from deepcoder_operator.kube import errors
from deepcoder_operator.progress import certificate_store, certificates
from deepcoder_operator.progress import server as progress_server
from deepcoder_operator.progress.authentication import (
    AuthenticationUnavailable,
    Remembering,
    Subject,
    Unauthenticated,
)
from deepcoder_operator.progress.health import HealthServer
from deepcoder_operator.progress.metrics import REPORTS
from deepcoder_operator.progress.server import ProgressServer
from deepcoder_operator.progress_board import Heartbeat, ProgressBoard, RunKey

RUN = RunKey("ml", "demo")
TOKEN = "good-token"


class Tokens:
    """Stands where the API server's TokenReview does, and keeps the good tokens that it was asked about."""

    def __init__(self) -> None:
        self.known: set[str] = set()

    async def review(self, token: str) -> Subject:
        if token.startswith(TOKEN):
            self.known.add(token)
            return Subject("ml", "demo-head", f"uid-1{token.removeprefix(TOKEN)}")
        if token == "unavailable":
            raise AuthenticationUnavailable("the API server is away")
        raise Unauthenticated("the token is not valid")


@dataclass
class Operator:
    """A running server and a client that trusts it."""

    board: ProgressBoard = field(default_factory=ProgressBoard)
    now: float = 0.0
    leads: bool = True
    api: bool = True
    broken: bool = False
    url: str = ""
    tokens: Tokens = field(default_factory=Tokens)
    session: aiohttp.ClientSession | None = None

    async def connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A TLS connection of which nothing is known to be HTTP."""
        anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
        return await asyncio.open_connection("127.0.0.1", URL(self.url).port, ssl=anyone)

    async def post(
        self, body: bytes, token: str | None = TOKEN, path: str = "ml/demo"
    ) -> tuple[int, dict[str, Any], aiohttp.ClientResponse]:
        assert self.session is not None
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with self.session.post(f"{self.url}/v1/runs/{path}/progress", data=body, headers=headers) as response:
            text = await response.text()
        return response.status, json.loads(text) if text.startswith("{") else {}, response


def report(**changes: Any) -> bytes:
    values = {"ordinal": 3, "stage": "16k", "phase": TrainerPhase.TRAINING, "step": 7, "max_steps": 180}
    return ProgressReport(**{**values, "sent_at": datetime.now(UTC), **changes}).to_json()


@asynccontextmanager
async def running() -> AsyncIterator[Operator]:
    operator = Operator()
    material = certificates.renew(None, ["localhost", "127.0.0.1"], datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate_store._load(context, material)

    async def find_pod(namespace: str, name: str) -> dict[str, Any] | None:
        if operator.broken:
            raise AssertionError("a fault of our own")
        if not operator.api:
            raise errors.Unavailable("no answer in 15 s")
        labels = {LABEL_RUN: "demo", LABEL_RUN_UID: "run-uid", LABEL_ORDINAL: "3", LABEL_ROLE: HEAD}
        return {"metadata": {"name": name, "namespace": namespace, "uid": "uid-1", "labels": labels}}

    tokens = Remembering(operator.tokens, lambda: operator.now)
    server = ProgressServer(operator.board, tokens, find_pod, active=lambda: operator.leads, clock=lambda: operator.now)
    port = await server.start("127.0.0.1", 0, context)
    operator.url = f"https://localhost:{port}"
    trust = ssl.create_default_context(cadata=material.bundle.decode())
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as session:
            operator.session = session
            yield operator
    finally:
        await server.stop()


@pytest.fixture
async def operator() -> AsyncIterator[Operator]:
    async with running() as op:
        op.board.post(RUN, run_uid="run-uid", ordinal=3, reply=ProgressReply(), pool="judges")
        yield op


async def test_report_reaches_the_board_and_wakes_the_run(operator: Operator) -> None:
    woken: list[RunKey] = []
    operator.board.on_report = woken.append
    body = report(expected_submissions=ExpectedSubmissions(count=64, within_seconds=60))
    status, reply, _ = await operator.post(body)
    assert (status, reply["desired"]) == (200, "Run")
    heartbeat = operator.board.heartbeat(RUN, 3)
    assert heartbeat is not None
    assert (heartbeat.report.step, heartbeat.pod_uid) == (7, "uid-1"), "the next head's silence is not this one's"
    assert woken == [RUN]
    assert operator.board.expected_submissions("ml", "judges", heartbeat.received_at) == 64


async def test_board_keeps_when_a_report_last_showed_that_work_goes_on(operator: Operator) -> None:
    phases = [TrainerPhase.TRAINING, TrainerPhase.EVALUATING, TrainerPhase.TRAINING, TrainerPhase.TRAINING]
    for at, (phase, step) in enumerate(zip(phases, (7, 7, 7, 8), strict=True)):
        told = ProgressReport.model_validate_json(report(phase=phase, step=step))
        operator.board.receive(RUN, Heartbeat(told, received_at=at, pod_uid="uid-1"))
        heartbeat = operator.board.heartbeat(RUN, 3)
        assert heartbeat is not None
        assert heartbeat.alive_at == (0, 1, 1, 3)[at]
    operator.board.receive(RUN, Heartbeat(told, received_at=9, pod_uid="uid-2"))
    heartbeat = operator.board.heartbeat(RUN, 3)
    assert heartbeat is not None
    assert heartbeat.alive_at == 9, "another pod's first report"


async def test_wish_to_drain_is_carried_by_the_reply(operator: Operator) -> None:
    wish = ProgressReply(desired=Desired.DRAIN, deadline_seconds=120)
    operator.board.post(RUN, run_uid="run-uid", ordinal=3, reply=wish, pool=None)
    status, reply, _ = await operator.post(report())
    assert status == 200
    assert ProgressReply.model_validate(reply) == wish


async def test_attempt_that_is_no_longer_the_live_one_is_told_to_drain(operator: Operator) -> None:
    operator.board.post(RUN, run_uid="run-uid", ordinal=4, reply=ProgressReply(), pool=None)
    status, reply, _ = await operator.post(report())
    assert (status, reply["desired"]) == (200, "Drain")
    assert operator.board.heartbeat(RUN, 4) is None


async def test_client_that_trusts_other_authorities_is_not_served(operator: Operator) -> None:
    stranger = certificates.renew(None, ["localhost"], datetime.now(UTC))
    trust = ssl.create_default_context(cadata=stranger.bundle.decode())
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as session:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.post(f"{operator.url}/v1/runs/ml/demo/progress")


@pytest.mark.parametrize("token", [None, "", "wrong"])
async def test_caller_without_a_good_token_is_refused(operator: Operator, token: str | None) -> None:
    status, answer, response = await operator.post(report(), token=token)
    assert status == 401
    assert answer["error"]
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert operator.board.heartbeat(RUN, 3) is None


@pytest.mark.parametrize(("path", "ordinal"), [("ml/other", 3), ("elsewhere/demo", 3), ("ml/demo", 2)])
async def test_pod_may_speak_for_its_own_attempt_only(operator: Operator, path: str, ordinal: int) -> None:
    status, _, _ = await operator.post(report(ordinal=ordinal), path=path)
    assert status == 403
    assert operator.board.heartbeat(RUN, 3) is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"step": -1}, "step"),
        ({"step": 10**19}, "step"),
        ({"maxSteps": 10**19}, "maxSteps"),
        ({"verdicts": {"passed": 10**19}}, "verdicts.passed"),
    ],
)
async def test_report_that_breaks_the_contract_is_refused_by_field(
    operator: Operator, change: dict[str, Any], field: str
) -> None:
    """A number that a status has no room for would be refused with the status, and the run stand still."""
    status, answer, _ = await operator.post(json.dumps(json.loads(report()) | change).encode())
    assert (status, answer["field"]) == (400, field)


async def test_report_of_an_unknown_version_says_so(operator: Operator) -> None:
    values = json.loads(report()) | {"schemaVersion": 9}
    status, answer, _ = await operator.post(json.dumps(values).encode())
    assert status == 400
    assert "schemaVersion 9" in answer["error"]


async def test_body_beyond_the_limit_is_refused_announced_or_not(operator: Operator) -> None:
    status, _, _ = await operator.post(b"x" * (MAX_BODY_BYTES + 1))
    assert status == 413

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 1024 + 1):
            yield b"x" * 1024

    status, _, _ = await operator.post(chunks())  # type: ignore[arg-type]
    assert status == 413


async def test_report_of_a_run_that_was_not_planned_yet_is_to_come_again(operator: Operator) -> None:
    operator.board.withdraw(RUN)
    status, _, response = await operator.post(report())
    assert status == 503
    assert int(response.headers["Retry-After"]) >= 1


async def test_standby_sends_the_trainer_to_another_replica_and_asks_nobody(operator: Operator) -> None:
    operator.leads = False
    status, answer, response = await operator.post(report(), token="unavailable")
    assert (status, answer["error"]) == (503, "this replica is on standby, another one leads")
    assert response.headers["Retry-After"] == "1"
    assert response.headers["Connection"] == "close"
    await operator.post(report())
    assert operator.board.heartbeat(RUN, 3) is None
    operator.leads = True
    assert (await operator.post(report()))[0] == 200


async def test_answer_is_in_the_version_of_the_report(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator is upgraded first: trainers that run refuse what they do not know."""
    old = report()
    monkeypatch.setattr(ProgressReply, "CURRENT_VERSION", 2)
    operator.board.post(RUN, run_uid="run-uid", ordinal=3, reply=ProgressReply(), pool=None)
    status, answer, _ = await operator.post(old)
    assert (status, answer["schemaVersion"]) == (200, 1)


async def test_another_pod_than_the_head_is_refused_and_the_head_is_heard(operator: Operator) -> None:
    operator.board.post(RUN, run_uid="run-uid", ordinal=3, reply=ProgressReply(), pool=None, head_uid="uid-2")
    assert (await operator.post(report()))[0] == 403
    operator.board.post(RUN, run_uid="run-uid", ordinal=3, reply=ProgressReply(), pool=None, head_uid="uid-1")
    assert (await operator.post(report()))[0] == 200


async def test_unreachable_api_server_is_not_taken_for_a_bad_token(operator: Operator) -> None:
    status, _, _ = await operator.post(report(), token="unavailable")
    assert status == 503


async def test_report_whose_pod_cannot_be_looked_for_now_is_to_come_again(operator: Operator) -> None:
    operator.api = False
    status, answer, response = await operator.post(report())
    assert (status, response.headers["Retry-After"]) == (503, "5")
    assert "no answer" in answer["error"]


async def test_pod_that_reports_too_often_is_slowed_down(operator: Operator) -> None:
    statuses = [(await operator.post(report()))[0] for _ in range(12)]
    assert statuses == [200] * 10 + [429] * 2
    operator.now = 5.0
    assert (await operator.post(report()))[0] == 200


async def test_flood_without_tokens_is_cut_off_before_it_costs_a_review(operator: Operator) -> None:
    answers = await asyncio.gather(*(operator.post(b"", token="wrong") for _ in range(80)))
    statuses = [status for status, _, _ in answers]
    assert statuses.count(401) == 60
    assert statuses.count(429) == 20


async def test_many_pods_behind_one_address_are_heard_whoever_floods_from_it(operator: Operator) -> None:
    """Where pods are masqueraded a thousand heads have one address."""
    tokens = [TOKEN + "." * n for n in range(40)]
    await asyncio.gather(*(operator.post(report(), token=token) for token in tokens))
    answers = await asyncio.gather(*(operator.post(b"", token="wrong") for _ in range(60)))
    assert 429 in {status for status, _, _ in answers}
    answers = await asyncio.gather(*(operator.post(report(), token=token) for token in tokens for _ in range(4)))
    assert 429 not in {status for status, _, _ in answers}


_HEAD = b"POST /v1/runs/ml/demo/progress HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer good-token\r\n"


@pytest.mark.parametrize(
    ("request_", "progress", "health"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nno header\r\n\r\n", b"400", b"400", id="header"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000, b"400", b"400", id="long header"),
        pytest.param(b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", b"400", b"400", id="path"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\x16\x03\x01\r\n\r\n", b"400", b"400", id="second request"),
        pytest.param(_HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"400", b"400", id="chunk"),
        pytest.param(
            _HEAD + b"Content-Encoding: gzip\r\nContent-Length: 8\r\n\r\nnot gzip", b"400", b"404", id="encoding"
        ),
        pytest.param(_HEAD.replace(b"good", b"\xff") + b"Connection: close\r\n\r\n", b"401", b"404", id="token"),
    ],
)
@pytest.mark.parametrize("port", ["progress", "health"])
async def test_request_that_is_no_http_is_answered_and_fills_no_log(
    operator: Operator, caplog: pytest.LogCaptureFixture, request_: bytes, progress: bytes, health: bytes, port: str
) -> None:
    """Anyone who reaches a port could write tracebacks into the operator's log, each of some 40 lines."""
    server = HealthServer(live={}, ready={})
    plain = await server.start("127.0.0.1", 0)
    try:
        if port == "progress":
            reader, writer = await operator.connected()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", plain)
        writer.write(request_)
        async with asyncio.timeout(30):
            answer = await reader.read()
        writer.close()
    finally:
        await server.stop()
    assert re.findall(rb"HTTP/1\.[01] (\d+)", answer)[-1] == (progress if port == "progress" else health)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        pytest.param(b"", b"", id="nothing"),
        pytest.param(_HEAD + b"X-Slow: ", b"", id="half a head"),
        pytest.param(_HEAD + b"Content-Length: 1000\r\n\r\n{", b"408", id="half a body"),
    ],
)
@pytest.mark.early
async def test_connection_of_whoever_does_not_go_on_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, said: bytes, answer: bytes
) -> None:
    """Anyone who reaches the port could fill the operator's memory with them."""
    monkeypatch.setattr(progress_server, "IDLE_SECONDS", 0.5)
    monkeypatch.setattr(progress_server, "READ_SECONDS", 0.5)
    async with running() as operator, asyncio.timeout(60):
        reader, writer = await operator.connected()
        writer.write(said)
        told = await reader.read()
        writer.close()
    assert b"".join(re.findall(rb"HTTP/1\.1 (\d+)", told)) == answer


async def test_trainer_that_ends_in_the_middle_of_its_report_is_no_error(
    operator: Operator, caplog: pytest.LogCaptureFixture
) -> None:
    refused = REPORTS.labels(code="400")._value
    before = refused.get()
    _, writer = await operator.connected()
    writer.write(_HEAD + b"Content-Length: 1000\r\n\r\n{")
    async with asyncio.timeout(30):
        while not operator.tokens.known:
            await asyncio.sleep(0.01)
        writer.transport.abort()
        while refused.get() == before:
            await asyncio.sleep(0.01)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_failure_of_the_servers_own_is_logged(operator: Operator, caplog: pytest.LogCaptureFixture) -> None:
    operator.broken = True
    status, _, _ = await operator.post(report())
    assert status == 500
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert "a fault of our own" in str(record.exc_info[1])


async def test_connection_that_is_kept_takes_little_memory(operator: Operator) -> None:
    """A thousand heads keep one each; asyncio's own buffer would be 256 KiB."""
    await operator.post(report())
    buffers = [len(p._ssl_buffer) for p in gc.get_objects() if type(p) is SSLProtocol]
    assert buffers
    assert max(buffers) <= 32 * 1024
