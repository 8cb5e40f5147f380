"""Whatever a client sends: a clear refusal with the field named, in bounded time and memory, and others are served."""

import asyncio
import gc
import gzip
import hashlib
import json
import threading

import aiohttp
import pytest
from aiohttp import web

from deepcoder_contracts.judge import JudgeRequest, JudgeResponse, Problem, TestCase, Tier
from deepcoder_sandbox import admission
from deepcoder_sandbox.admission import MAX_STRUCTURE_BYTES, Refused
from deepcoder_sandbox.pool import Pool
from deepcoder_sandbox.server import request_body
from deepcoder_sandbox.server.app import Judge, make_app
from deepcoder_sandbox.server.idempotency import Answers
from deepcoder_sandbox.server.memory_budget import MemoryBudget, request_bytes
from deepcoder_sandbox.server.metrics import Metrics
from deepcoder_sandbox.tests_store import TestStore
from deepcoder_sandbox.zygote_process import ZygoteConfig

MIB = 1 << 20
BODY = {"id": "a", "code": "print(input())", "tests": [{"input": "1", "output": "1"}]}
FUNCTION = {**BODY, "kind": "function", "fn_name": "f"}
LENGTH = "print(len(input()))"


@pytest.fixture(scope="module")
def pool():
    pool = Pool(ZygoteConfig(), slots=1, worker="here", max_queued=20)
    yield pool
    pool.close(30)


@pytest.fixture
async def served(pool):
    judge = Judge(
        pool, Tier.LANDLOCK, {}, Metrics(), TestStore(2 * MIB), Answers(10, MIB), MemoryBudget(8 * MIB), 64 * MIB
    )
    runner = web.AppRunner(make_app(judge, None), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
        yield judge, session, port
    assert judge.room.held == 0  # whatever came
    await runner.cleanup()


@pytest.fixture
def judge(served):
    return served[0]


@pytest.fixture
def session(served):
    return served[1]


async def post(session, body, **options):
    async with session.post("/v1/judge", data=body, **options) as response:
        return response, await response.text()


async def problem(session, status, body, **options):
    response, text = await post(session, body, **options)
    assert response.status == status, text
    assert len(text) < 1000
    return Problem.model_validate_json(text)


async def test_request_without_a_header_of_its_run_is_judged(session):
    _, text = await post(session, json.dumps(BODY))
    assert JudgeResponse.model_validate_json(text).passed is True


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"null", "body"),
        (b"[]", "body"),
        (b'"text"', "body"),
        (b"\x00", "body"),
        (b"[" * 100_000, "body"),
        (b'{"a":' * 100_000, "body"),
        (json.dumps(BODY).encode()[:-1], "body"),
        (json.dumps(BODY).encode() + b"{}", "body"),
        (json.dumps(BODY).encode("utf-16"), "body"),
        (b"\xef\xbb\xbf" + json.dumps(BODY).encode(), "body"),
        (json.dumps(BODY).replace("input()", "\\ud800").encode(), "body"),
        (json.dumps(BODY).encode().replace(b"input()", b"\xed\xa0\x80"), "body"),
        (json.dumps({**BODY, "id": None}), "id"),
        (json.dumps({key: value for key, value in BODY.items() if key != "id"}), "id"),
        (json.dumps({key: value for key, value in BODY.items() if key != "code"}), "code"),
        (json.dumps({**BODY, "id": "x" * 257}), "id"),
        (json.dumps({**BODY, "id": 7}), "id"),
        (json.dumps({**BODY, "code": ["print(1)"]}), "code"),
        (json.dumps({**BODY, "tests": {}}), "tests"),
        (json.dumps({**BODY, "tests": [{"input": "1"}]}), "tests.0.output"),
        (json.dumps({**BODY, "tests": [{"input": 1, "output": "1"}]}), "tests.0.input"),
        (json.dumps({**BODY, "tests": [*BODY["tests"], {"input": "1", "output": "1", "x": 1}]}), "tests.1.x"),
        (lambda: json.dumps({**BODY, "tests": BODY["tests"] * 10_001}), "tests"),
        (json.dumps({**BODY, "x" * 100_000: 1}), "x" * 200),
        (json.dumps({**BODY, "tests_sha256": "0" * 63, "tests": None}), "tests_sha256"),
        (json.dumps({**BODY, "kind": "interactive"}), "kind"),
        (json.dumps({**BODY, "scoring": "lenient"}), "scoring"),
        (json.dumps({**BODY, "language": "cpp"}), "language"),
        (json.dumps({**BODY, "fn_name": "f"}), "fn_name"),
        (json.dumps(BODY).replace('"code"', '"time_limit_s": NaN, "code"'), "time_limit_s"),
        (json.dumps(BODY).replace('"code"', '"time_limit_s": 1e999, "code"'), "time_limit_s"),
        (json.dumps(BODY).replace('"code"', '"deadline_s": Infinity, "code"'), "deadline_s"),
        (json.dumps(BODY).replace('"code"', f'"memory_limit_mb": {"9" * 4000}, "code"'), "memory_limit_mb"),
        (json.dumps(BODY).replace('"code"', f'"memory_limit_mb": {"9" * 1_000_000}, "code"'), "body"),
        (json.dumps({**BODY, "memory_limit_mb": 1.5}), "memory_limit_mb"),
        (json.dumps({**FUNCTION, "tests": [{"input": "9" * 100_000, "output": "1"}]}), "tests.0.input"),
        (json.dumps({**FUNCTION, "tests": [{"input": "1", "output": "[" * 100_000}]}), "tests.0.output"),
        (lambda: json.dumps({**BODY, "code": "x" * (50 * MIB)}), "code"),
        (json.dumps({**BODY, "code": "\0"}), "code"),
        (lambda: json.dumps({**BODY, "code": "# " + "é" * (MIB // 2)}), "code"),  # by its bytes in UTF-8
    ],
)
async def test_nonsense_is_refused_with_its_field(session, body, field):
    refused = await problem(
        session, 400, body() if callable(body) else body
    )  # a large one is made by who runs the test
    assert refused.field == field, refused
    assert refused.error.startswith((f"{field}:", "give ", "fn_name ")), refused


@pytest.mark.parametrize("text", ["a\0b", "\U0001f600", "\u2028", "\x85\x1c", "\ufeff1", "1\r\n2\r"])
async def test_odd_text_that_is_no_nonsense_reaches_the_program_as_it_is(session, text):
    code = "import sys\nprint(ascii(sys.stdin.buffer.read().decode()))"
    body = {**BODY, "id": ascii(text), "code": code, "tests": [{"input": text, "output": ascii(text)}]}
    _, answer = await post(session, json.dumps(body))
    assert JudgeResponse.model_validate_json(answer).passed is True, answer


@pytest.mark.parametrize("flood", [b"[],", b'"",', b"1,", b'{"":1},', b" ", b'"\\"",', b'"%b":1,' % (b"name" * 9)])
def test_flood_of_values_is_refused_before_it_is_read(flood, monkeypatch):
    body = b'{"id": [' + flood * (8 * MIB // len(flood)) + b"1]}"
    monkeypatch.setattr(admission.JudgeRequest, "model_validate_json", lambda body: pytest.fail("it was read"))
    with pytest.raises(Refused) as refused:
        admission.parse_request(body)
    assert refused.value.field == "body"


@pytest.mark.parametrize("end", [b"", b'"', b"\\"])
def test_text_without_an_end_is_looked_through_once(end):
    body = b'{"id": "' + b'\\"' * (4 * MIB) + end  # anew from each quote would take hours
    with pytest.raises(Refused):
        admission.parse_request(body)


def test_as_many_tests_as_there_may_be_generously_laid_out_are_no_flood():
    tests = [{"input": "[1, 2]" * 50, "output": '"'}] * 10_000
    body = json.dumps({**BODY, "tests": tests}, indent=8).encode()
    assert len(body) > MAX_STRUCTURE_BYTES
    assert len(admission.parse_request(body).tests) == 10_000


async def test_body_that_says_it_is_too_long_is_refused_unread(served):
    _, _, port = served
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/judge HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n"), 10)
    assert b" 413 " in head
    writer.close()


async def chunks(count):
    for _ in range(count):
        yield b" " * MIB


async def test_body_in_chunks_is_refused_when_it_is_too_long(session):
    refused = await problem(session, 413, chunks(66))
    assert refused.field == "body"
    assert "--max-body-mb" in refused.error


async def test_test_set_that_is_too_long_is_not_told_to_be_stored(session):
    async with session.put(f"/v1/tests/{'0' * 64}", data=chunks(65)) as response:
        assert response.status == 413
        told = Problem.model_validate_json(await response.text())
    assert told.error == f"body: larger than {64 * MIB} bytes: leave tests out, or raise --max-body-mb"


async def test_compressed_body_counts_with_its_own_length(session):
    headers = {"Content-Encoding": "gzip"}
    bomb = gzip.compress(b" " * (66 * MIB))
    assert (await problem(session, 413, bomb, headers=headers)).field == "body"
    _, text = await post(session, gzip.compress(json.dumps({**BODY, "id": "zip"}).encode()), headers=headers)
    assert JudgeResponse.model_validate_json(text).passed is True


async def test_body_that_is_not_compressed_as_it_says_is_the_clients_mistake(session, caplog):
    plain = json.dumps(BODY).encode()
    refused = await problem(session, 400, plain, headers={"Content-Encoding": "gzip"})
    assert refused.field == "body"
    assert "gzip" in refused.error
    assert "a request failed" not in caplog.text


async def test_client_that_dawdles_is_not_waited_for(served, monkeypatch):
    judge, _, port = served
    monkeypatch.setattr(request_body, "READ_S", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/judge HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    answer = await asyncio.wait_for(reader.readuntil(b"}"), 10)
    assert b" 408 " in answer
    assert b"connection: close" in answer.lower()  # or what comes late would be taken for another request
    assert b"not received within" in answer
    assert judge.room.held == 0
    writer.close()


async def test_client_that_leaves_in_the_middle_leaves_nothing_behind_and_is_no_defect(served, caplog):
    judge, _, port = served
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/judge HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n" + b" " * 1000)
    async with asyncio.timeout(60):
        while judge.room.held != 5_000_000:
            await asyncio.sleep(0.01)
        writer.close()
        while judge.room.held:
            await asyncio.sleep(0.01)
        while b"refused_requests_total{" not in judge.metrics.exposition():
            await asyncio.sleep(0.01)
    assert b'refused_requests_total{status="400"} 1.0' in judge.metrics.exposition()
    assert "a request failed" not in caplog.text


async def test_body_in_chunks_holds_what_has_arrived_of_it(served):
    judge, _, port = served
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /v1/judge HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head + b"%x\r\n" % MIB + b" " * MIB + b"\r\n")
    async with asyncio.timeout(60):
        while judge.room.held != MIB:
            await asyncio.sleep(0.01)
        writer.close()
        while judge.room.held:
            await asyncio.sleep(0.01)


async def test_submissions_that_take_too_much_memory_together_wait_outside(served, held_answers):
    judge, session, _ = served
    text = "x" * (3 * MIB)
    bodies = [
        json.dumps({**BODY, "id": f"big-{n}", "code": LENGTH, "tests": [{"input": text, "output": str(3 * MIB)}]})
        for n in range(4)
    ]
    asking = [asyncio.ensure_future(post(session, body)) for body in bodies]
    await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)  # one is refused, while others are judged
    held_answers.set()
    answers = await asyncio.gather(*asking)
    assert sorted({response.status for response, _ in answers}) == [200, 429]
    for response, text in answers:
        if response.status == 429:
            assert int(response.headers["Retry-After"]) >= 1
            assert "memory" in Problem.model_validate_json(text).error
    assert judge.room.held == 0
    _, text = await post(session, bodies[3])
    assert JudgeResponse.model_validate_json(text).passed is True


async def test_single_submission_larger_than_the_room_is_judged_alone(session):
    text = "\U0001f600" * (3 * MIB)  # 12 MiB sent, and so in memory
    body = {**BODY, "id": "huge", "code": "print(len(input()))", "tests": [{"input": text, "output": str(3 * MIB)}]}
    _, answer = await post(session, json.dumps(body, ensure_ascii=False).encode())
    assert JudgeResponse.model_validate_json(answer).passed is True


async def test_submission_holds_the_memory_that_its_tests_take_and_not_what_they_took_on_the_way(served, held_answers):
    judge, session, _ = served
    body = {**BODY, "id": "many", "code": "print(2)", "tests": BODY["tests"] * 5000}
    asking = asyncio.ensure_future(post(session, json.dumps(body)))
    async with asyncio.timeout(60):
        while not judge.pool.busy:
            await asyncio.sleep(0.01)
    assert judge.room.held == request_bytes(JudgeRequest(**body)) > 10 * len(json.dumps(body))
    held_answers.set()
    await asking


async def test_same_id_twice_at_once_is_held_once(served, held_answers):
    judge, session, _ = served
    text = "x" * (3 * MIB // 2)
    body = json.dumps({**BODY, "id": "same", "code": LENGTH, "tests": [{"input": text, "output": str(3 * MIB // 2)}]})
    first = asyncio.ensure_future(post(session, body))
    async with asyncio.timeout(60):
        while not judge.pool.busy:
            await asyncio.sleep(0.01)
    again = asyncio.ensure_future(post(session, body))
    async with asyncio.timeout(60):
        while b"repeated_answers_total 1.0" not in judge.metrics.exposition():
            await asyncio.sleep(0.01)
    assert judge.room.held < 2 * MIB
    gc.collect()  # what is garbage is not held
    texts = sum(type(each) is TestCase and len(each.input) == len(text) for each in gc.get_objects())
    assert texts == 1  # whoever asks again waits without them
    held_answers.set()
    assert (await again)[1] == (await first)[1]


async def test_same_id_twice_while_its_tests_are_checked_is_judged_once_and_answered_twice(served):
    judge, session, _ = served
    tests = [{"input": "1", "output": "1"}] * 200  # short as a body, and long to check
    body = json.dumps({**FUNCTION, "id": "checked", "code": "def f(x): return x", "tests": tests})
    may_check = threading.Event()
    judge.reader.submit(may_check.wait, 60)
    asking = [asyncio.ensure_future(post(session, body)) for _ in range(2)]
    async with asyncio.timeout(60):
        while judge.reader._work_queue.qsize() < 2:
            await asyncio.sleep(0.01)
        may_check.set()
        (_, first), (_, again) = await asyncio.gather(*asking)
    assert JudgeResponse.model_validate_json(first).passed is True
    assert again == first


async def test_tests_in_use_are_not_dropped_for_others(served, held_answers):
    judge, session, _ = served

    async def put(character):
        tests = json.dumps({"tests": [{"input": character * (MIB + MIB // 2), "output": str(MIB + MIB // 2)}]}).encode()
        digest = hashlib.sha256(tests).hexdigest()
        async with session.put(f"/v1/tests/{digest}", data=tests) as response:
            return digest, response.status

    digest, status = await put("x")
    assert status == 200
    body = json.dumps({"id": "stored", "code": LENGTH, "tests_sha256": digest})
    judging = asyncio.ensure_future(post(session, body))
    async with asyncio.timeout(60):
        while not judge.pool.busy:
            await asyncio.sleep(0.01)
    assert (await put("y"))[1] == 429
    held_answers.set()
    assert JudgeResponse.model_validate_json((await judging)[1]).passed is True
    assert (await put("y"))[1] == 200
    assert await problem(session, 404, body.replace("stored", "again"))


async def test_defect_of_ours_is_a_problem_too_and_is_logged(session, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr("deepcoder_sandbox.admission.check", fail)
    refused = await problem(session, 500, json.dumps({**BODY, "id": "defect"}))
    assert "RuntimeError" in refused.error
    assert "a request failed" in caplog.text
