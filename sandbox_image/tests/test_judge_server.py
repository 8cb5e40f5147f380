"""The HTTP contract, over a real socket with a real client and real zygotes."""

import asyncio
import gc
import hashlib
import itertools
import json
import os
import re
import threading

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from deepcoder_contracts.judge import RUN_HEADER, VERSION_HEADER, JudgeResponse, Problem, Tier
from deepcoder_sandbox import admission
from deepcoder_sandbox.pool import Pool
from deepcoder_sandbox.server import auth
from deepcoder_sandbox.server.app import Judge, make_app
from deepcoder_sandbox.server.auth import BadToken, Token
from deepcoder_sandbox.server.idempotency import Answers
from deepcoder_sandbox.server.memory_budget import MemoryBudget
from deepcoder_sandbox.server.metrics import Metrics
from deepcoder_sandbox.tests_store import TestStore
from deepcoder_sandbox.zygote_process import ZygoteConfig

TOKEN = "a-token-for-these-tests-only"
SLOW = "import time\ntime.sleep(0.3)\nprint(input())"
BODY = {"id": "a", "code": "print(input())", "tests": [{"input": "1", "output": "1"}]}


@pytest.fixture(scope="module")
def judge():
    metrics = Metrics()
    pool = Pool(ZygoteConfig(), slots=1, worker="here", max_queued=3, observer=metrics.observer())
    store, answers, room = TestStore(1 << 20), Answers(100, 1 << 20), MemoryBudget(4 << 20)
    judge = Judge(pool, Tier.LANDLOCK, {"memory": True}, metrics, store, answers, room, 1 << 20, 2048)
    metrics.watch(judge.capacity)
    yield judge
    pool.close(30)


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN)
    return path


@pytest.fixture
async def client(judge, token_file):
    runner = web.AppRunner(make_app(judge, Token(token_file)), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession(url, headers=headers) as session:
        yield session
    await runner.cleanup()


def unique(**fields):
    return {**BODY, "id": os.urandom(8).hex(), **fields}


async def post(client, body, **options):
    async with client.post("/v1/judge", json=body, **options) as response:
        return response, await response.text()


async def refusal(client, status, **request):
    async with client.post("/v1/judge", **request) as response:
        assert response.status == status, await response.text()
        return Problem.model_validate_json(await response.text())


async def test_program_is_judged(client):
    response, text = await post(client, unique())
    assert response.status == 200
    answer = JudgeResponse.model_validate_json(text)
    assert answer.passed is True
    assert answer.worker == "here"


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", "Bearer \u00e9", f"bearer{TOKEN}"])
async def test_v1_needs_the_token(client, header):
    for method, path in (("POST", "/v1/judge"), ("PUT", "/v1/tests/x"), ("GET", "/v1/capacity")):
        async with client.request(method, path, headers={"Authorization": header}, data=b"{}") as response:
            assert response.status == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert TOKEN not in await response.text()


async def test_token_that_is_no_text_is_none(client):
    async with client.get("/healthz") as response:
        reader, writer = await asyncio.open_connection("127.0.0.1", response.url.port)
    writer.write(b"GET /v1/capacity HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xe9\r\n\r\n")
    assert b" 401 " in await asyncio.wait_for(reader.readuntil(b"\r\n"), 10)
    writer.close()


async def test_body_of_whoever_shows_no_token_is_not_waited_for(client, judge):
    async with client.get("/healthz") as response:
        port = response.url.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/judge HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{")
    assert b" 401 " in await asyncio.wait_for(reader.readuntil(b"\r\n"), 10)
    assert judge.room.held == 0
    writer.close()


async def test_paths_that_are_not_named_open_are_locked(client):
    for path in ("/", "/v2/judge", "//v1/judge", "/v1%2Fjudge", "/healthz/x", "/metrics/../v1/capacity"):
        async with client.get(
            URL(f"{client._base_url}{path}", encoded=True), headers={"Authorization": ""}
        ) as response:
            assert response.status == 401, path


async def test_health_and_metrics_need_no_token(client):
    for path in ("/healthz", "/readyz", "/metrics"):
        async with client.get(path, headers={"Authorization": ""}) as response:
            assert response.status == 200
    async with client.get("/metrics") as response:
        text = await response.text()
    assert 'deepcoder_sandbox_isolation_tier{tier="Landlock"} 1.0' in text
    assert 'deepcoder_sandbox_limit_enforced{limit="memory"} 1.0' in text


async def test_capacity_has_the_contracts_fields(client):
    async with client.get("/v1/capacity") as response:
        capacity = await response.json()
    load = {"slots": 1, "busy": 0, "queued": 0, "oldest_wait_s": 0.0}
    assert capacity == load | {"tier": "Landlock", "limits": {"memory": True}, "max_memory_mb": 2048}


async def test_capacity_says_which_code_grades(client):
    async with client.get("/v1/capacity") as response:
        told = response.headers[VERSION_HEADER]
    assert re.fullmatch(r"sha256:[0-9a-f]{16} python 3\.\d+\.\d+", told)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"\xff\xfe{}", "body"),
        (b'{"id": "a\\ud800"}', "body"),
        (json.dumps({**BODY, "tests": []}), "tests"),
        (json.dumps({**BODY, "tests": None}), "tests"),
        (json.dumps({**BODY, "tests_sha256": "0" * 64}), "tests"),
        (json.dumps({**BODY, "language": "rust"}), "language"),
        (json.dumps({**BODY, "code": "x = 1\0"}), "code"),
        (json.dumps({**BODY, "kind": "function"}), "fn_name"),
        (json.dumps({**BODY, "kind": "function", "fn_name": "f(x)"}), "fn_name"),
        (
            json.dumps({**BODY, "kind": "function", "fn_name": "f", "tests": [{"input": "x", "output": "1"}]}),
            "tests.0.input",
        ),
        (
            json.dumps({**BODY, "kind": "function", "fn_name": "f", "tests": [{"input": "1", "output": ""}]}),
            "tests.0.output",
        ),
        (
            json.dumps(
                {**BODY, "kind": "function", "fn_name": "f", "tests": [{"input": "1", "output": "[" * 330 + "]" * 330}]}
            ),
            "tests.0.output",
        ),
        (json.dumps({**BODY, "time_limit_s": -1}), "time_limit_s"),
        (json.dumps({**BODY, "memory_limit_mb": 4096}), "memory_limit_mb"),
        (json.dumps({**BODY, "float_tolerance": 0.1, "scoring": "livecodebench"}), "float_tolerance"),
        (json.dumps({**BODY, "kind": "script", "scoring": "taco-compat"}), "scoring"),
        (json.dumps({**BODY, "scoring": "livecodebench", "stop_on_first_failure": False}), "stop_on_first_failure"),
        (json.dumps({**BODY, "surprise": 1}), "surprise"),
        (json.dumps({**BODY, "id": ""}), "id"),
    ],
)
async def test_bad_request_names_its_field(client, body, field):
    problem = await refusal(client, 400, data=body)
    assert problem.field == field, problem
    assert problem.error


async def test_source_or_body_too_large_is_refused(client):
    problem = await refusal(client, 413, json=unique(code="#" * (2 << 20)))
    assert problem.field == "body"
    assert "PUT /v1/tests" in problem.error


@pytest.mark.parametrize("header", ["no slashes", "ns/run/12345678/more", "ns/run/12345678 more", "ns//12345678"])
async def test_run_header_has_to_be_one(client, header):
    problem = await refusal(client, 400, json=unique(), headers={RUN_HEADER: header})
    assert problem.field == RUN_HEADER


async def test_same_id_and_content_is_judged_once(client, judge):
    body = unique(code=SLOW)
    before = judge.metrics.exposition()
    answers = await asyncio.gather(*(post(client, {**body, "deadline_s": 50 + n}) for n in range(3)))
    texts = {text for _, text in answers}
    _, later = await post(client, body)
    assert texts == {later}
    assert passed_submissions(judge.metrics.exposition()) == passed_submissions(before) + 1


def passed_submissions(exposition):
    for line in exposition.decode().splitlines():
        if line.startswith('deepcoder_sandbox_submissions_total{outcome="passed",scoring="strict"}'):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


async def test_same_id_with_other_content_conflicts_unless_the_run_is_another(client):
    body = unique()
    await post(client, body, headers={RUN_HEADER: "ns/run/12345678"})
    problem = await refusal(client, 409, json={**body, "code": "1"}, headers={RUN_HEADER: "ns/run/12345678"})
    assert problem.field == "id"
    response, _ = await post(client, {**body, "code": "1"}, headers={RUN_HEADER: "ns/run/87654321"})
    assert response.status == 200


async def test_full_queue_answers_429_with_retry_after_and_loses_nothing(client, held_answers):
    bodies = [unique() for _ in range(12)]
    asking = [asyncio.ensure_future(post(client, body)) for body in bodies]
    for refused in itertools.islice(asyncio.as_completed(asking), 8):  # one is judged, and three wait
        response, text = await refused
        assert response.status == 429
        assert int(response.headers["Retry-After"]) >= 1
        assert Problem.model_validate_json(text).error
    held_answers.set()
    answers = await asyncio.gather(*asking)
    for body, (response, _) in zip(bodies, answers, strict=True):
        while response.status == 429:
            await asyncio.sleep(0.05)
            response, text = await post(client, body)
        assert response.status == 200


async def test_answer_is_not_held_until_the_deadline_that_it_was_given_before(client):
    body = unique(deadline_s=3000)
    await post(client, body)
    async with asyncio.timeout(60):
        while any(type(each) is JudgeResponse and each.id == body["id"] for each in gc.get_objects()):
            await asyncio.sleep(0.01)


async def test_client_that_hangs_up_finds_its_answer_later(client):
    body = unique(code=SLOW)
    with pytest.raises(asyncio.TimeoutError):
        await post(client, body, timeout=aiohttp.ClientTimeout(total=0.1))
    _, text = await post(client, body)
    assert JudgeResponse.model_validate_json(text).passed is True


async def test_answer_of_error_is_judged_again_when_asked_again(client):
    body = unique(code=SLOW)
    response, text = await post(client, {**body, "deadline_s": 0.2})
    async with asyncio.timeout(60):
        while response.status == 503:  # a busy machine had not begun with it by then
            response, text = await post(client, {**body, "deadline_s": 0.2})
    assert JudgeResponse.model_validate_json(text).passed is None
    _, text = await post(client, body)
    assert JudgeResponse.model_validate_json(text).passed is True


async def test_submission_behind_slow_neighbours_is_not_judged_at_its_deadline_and_judged_when_asked_again(
    client, held_answers
):
    slow = asyncio.ensure_future(post(client, unique()))
    async with asyncio.timeout(60):
        while not (await (await client.get("/v1/capacity")).json())["busy"]:
            await asyncio.sleep(0.01)
    body = unique()
    response, text = await post(client, {**body, "deadline_s": 0.2})
    held_answers.set()
    assert response.status == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert "not judged" in Problem.model_validate_json(text).error
    _, text = await post(client, body)
    assert JudgeResponse.model_validate_json(text).passed is True
    assert JudgeResponse.model_validate_json((await slow)[1]).passed is True


async def test_long_body_is_read_without_holding_up_others(client, monkeypatch):
    parse, being_read, may_go_on = admission.parse_request, threading.Event(), threading.Event()

    def parse_slowly(body):
        if len(body) > 200_000:
            being_read.set()
            assert may_go_on.wait(30)
        return parse(body)

    monkeypatch.setattr("deepcoder_sandbox.admission.parse_request", parse_slowly)
    long = asyncio.ensure_future(post(client, unique(code="#" * 200_000 + "\nprint(input())")))
    async with asyncio.timeout(60):
        while not being_read.is_set():
            await asyncio.sleep(0.01)
    _, text = await post(client, unique())
    assert JudgeResponse.model_validate_json(text).passed is True
    assert not long.done()
    may_go_on.set()
    assert JudgeResponse.model_validate_json((await long)[1]).passed is True


async def put_tests(client, tests, digest=None):
    body = json.dumps({"tests": tests}).encode()
    digest = digest or hashlib.sha256(body).hexdigest()
    async with client.put(f"/v1/tests/{digest}", data=body) as response:
        return digest, response.status, await response.json()


async def test_stored_tests_are_judged_by_their_digest(client):
    digest, status, stored = await put_tests(client, [{"input": "1", "output": "1"}, {"input": "2", "output": "2"}])
    assert (status, stored) == (200, {"sha256": digest, "tests": 2})
    _, text = await post(client, unique(tests=None, tests_sha256=digest))
    assert len(JudgeResponse.model_validate_json(text).verdicts) == 2


async def test_unknown_tests_are_404_with_the_mend(client):
    problem = await refusal(client, 404, json=unique(tests=None, tests_sha256="1" * 64))
    assert problem.field == "tests_sha256"
    assert "PUT" in problem.error


async def test_tests_with_another_digest_or_shape_are_refused(client):
    _, status, problem = await put_tests(client, [{"input": "1", "output": "1"}], "2" * 64)
    assert (status, problem["field"]) == (400, "sha256")
    _, status, problem = await put_tests(client, [])
    assert (status, problem["field"]) == (400, "tests")
    _, status, problem = await put_tests(client, [{"input": "1", "output": "x" * (2 << 20)}])
    assert (status, problem["field"]) == (413, "body")


async def test_store_is_bounded_and_drops_the_oldest(client):
    digests = []
    for number in range(5):
        digest, status, _ = await put_tests(client, [{"input": str(number), "output": "x" * 300_000}])
        assert status == 200
        digests.append(digest)
    await refusal(client, 404, json=unique(tests=None, tests_sha256=digests[0]))
    response, _ = await post(client, unique(tests=None, tests_sha256=digests[-1]))
    assert response.status == 200


async def test_other_paths_and_methods_are_problems_too(client):
    async with client.get("/v1/judge") as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")
        assert Problem.model_validate_json(await response.text()).error
    async with client.get("/v1/nothing") as response:
        assert response.status == 404


@pytest.mark.parametrize("text", ["", "short", "two tokens in here", "non-ascii-tokén-000"])
def test_token_file_of_no_use_is_refused_without_showing_it(tmp_path, text):
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(BadToken, match="--token-file") as bad:
        Token(path)
    assert not text or text not in str(bad.value)


NEW = "another-token-for-these-tests"


async def statuses(client, *tokens):
    given = []
    for token in tokens:
        async with client.get("/v1/capacity", headers={"Authorization": f"Bearer {token}"}) as response:
            given.append(response.status)
    return given


async def test_replaced_token_is_accepted_and_the_one_before_for_a_while(client, token_file, monkeypatch):
    monkeypatch.setattr(auth, "READ_AGAIN_S", 3600.0)
    token_file.write_text(NEW + "\n")
    assert await statuses(client, NEW, TOKEN) == [401, 200]  # the file was looked at a moment ago
    monkeypatch.setattr(auth, "READ_AGAIN_S", 0.0)
    assert await statuses(client, NEW, TOKEN, "neither-of-the-two-tokens") == [200, 200, 401]
    monkeypatch.setattr(auth, "OLD_ACCEPTED_S", 0.0)
    token_file.write_text("a-third-token-for-these-tests")
    assert await statuses(client, "a-third-token-for-these-tests", TOKEN, NEW) == [200, 200, 401]


async def test_token_file_of_no_use_for_a_moment_leaves_the_token_in_force(client, token_file, monkeypatch, caplog):
    monkeypatch.setattr(auth, "READ_AGAIN_S", 0.0)
    for away in (lambda: token_file.write_text(""), lambda: token_file.write_text("short"), token_file.unlink):
        away()
        assert await statuses(client, TOKEN, "", "short") == [200, 401, 401]
    assert len([record for record in caplog.records if "stays in force" in record.message]) == 1
    token_file.write_text(NEW)
    assert await statuses(client, NEW, TOKEN) == [200, 200]
    assert NEW not in caplog.text
    assert TOKEN not in caplog.text
