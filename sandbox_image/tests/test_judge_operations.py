"""What whoever runs judges sees and does: readiness, drain, metrics, logs, pid 1."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from judge_servers import Server, metric, submission

from deepcoder_contracts.judge import JudgeResponse, Problem, Tier
from deepcoder_sandbox.pool import Pool
from deepcoder_sandbox.server.app import Judge, make_app
from deepcoder_sandbox.server.idempotency import Answers
from deepcoder_sandbox.server.logs import MAX_CHARS, JsonFormatter, PlainFormatter
from deepcoder_sandbox.server.memory_budget import MemoryBudget
from deepcoder_sandbox.server.metrics import Metrics
from deepcoder_sandbox.server.serve import _LAST_ANSWERS_S, Listen, serve
from deepcoder_sandbox.tests_store import TestStore
from deepcoder_sandbox.zygote_process import ZygoteConfig, ZygoteFailed, ZygoteProcess

SLOW = "import time\ntime.sleep(0.3)\nprint(input())"


@asynccontextmanager
async def serving(pool):
    """A judge on this event loop, and a client."""
    judge = Judge(
        pool, Tier.LANDLOCK, {}, Metrics(), TestStore(1 << 20), Answers(10, 1 << 20), MemoryBudget(1 << 20), 1 << 20
    )
    runner = web.AppRunner(make_app(judge, None), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
        yield session
    await runner.cleanup()


async def post(session, body):
    async with session.post("/v1/judge", json=body) as response:
        return response, await response.text()


async def becomes(session, path, status):
    async with asyncio.timeout(60):
        while True:
            async with session.get(path) as response:
                if response.status == status:
                    return
            await asyncio.sleep(0.02)


async def test_draining_server_is_not_ready_and_refuses_with_503(held_answers):
    pool = Pool(ZygoteConfig(), slots=1, worker="here", max_queued=3)
    async with serving(pool) as session:
        last = asyncio.ensure_future(post(session, submission("a", SLOW, ("1", "1"))))
        while not pool.busy:
            await asyncio.sleep(0.005)
        pool.drain()
        await becomes(session, "/readyz", 503)
        response, text = await post(session, submission("b", SLOW, ("1", "1")))
        assert response.status == 503
        assert float(response.headers["Retry-After"]) > 0
        assert "draining" in Problem.model_validate_json(text).error
        held_answers.set()
        response, text = await last
        assert JudgeResponse.model_validate_json(text).passed is True
        _, again = await post(session, submission("a", SLOW, ("1", "1")))
        assert again == text  # no new work
    assert pool.close(30) is True


async def test_judge_that_cannot_start_zygotes_is_not_ready_then_not_healthy_and_recovers(monkeypatch):
    def fail(config):
        raise ZygoteFailed("no more processes")

    monkeypatch.setattr("deepcoder_sandbox.pool._START_AGAIN_S", 0.05)
    monkeypatch.setattr("deepcoder_sandbox.slot.ZygoteProcess", fail)
    pool = Pool(ZygoteConfig(), slots=1, worker="here", max_queued=3)
    async with serving(pool) as session:
        await becomes(session, "/readyz", 503)
        await becomes(session, "/healthz", 200)
        _, text = await post(session, submission("a", SLOW, ("1", "1")))
        assert JudgeResponse.model_validate_json(text).passed is None
        monkeypatch.setattr("deepcoder_sandbox.server.app.UNHEALTHY_AFTER_S", 0.2)
        await becomes(session, "/healthz", 503)
        monkeypatch.setattr("deepcoder_sandbox.slot.ZygoteProcess", ZygoteProcess)
        await becomes(session, "/readyz", 200)
        await becomes(session, "/healthz", 200)
        _, text = await post(session, submission("a", SLOW, ("1", "1")))
        assert JudgeResponse.model_validate_json(text).passed is True
    assert pool.close(30) is True


def test_one_zygote_that_fails_to_start_is_no_failing_judge(monkeypatch):
    failures = [ZygoteFailed("a bad moment")] * 2

    def fail_at_first(config):
        if failures:
            raise failures.pop()
        return ZygoteProcess(config)

    monkeypatch.setattr("deepcoder_sandbox.pool._START_AGAIN_S", 0.05)
    monkeypatch.setattr("deepcoder_sandbox.slot.ZygoteProcess", fail_at_first)
    pool = Pool(ZygoteConfig(), slots=1, worker="here", max_queued=3)
    until = time.monotonic() + 60
    while failures and time.monotonic() < until:
        assert pool.failing_s == 0
        time.sleep(0.01)
    assert pool.close(30) is True
    assert pool.failing_s == 0


async def test_work_that_outlasts_the_drain_is_given_back_and_the_server_leaves_in_time(tmp_path):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # inherited, as from a careless supervisor
    try:
        started = Server(tmp_path, "--slots", "1", "--drain-seconds", "1")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with started as server:
        async with server.session() as session:
            bodies = [submission(str(n), "import time\ntime.sleep(50)", time_limit_s=50) for n in range(2)]
            given = [asyncio.ensure_future(post(session, body)) for body in bodies]
            async with asyncio.timeout(40):
                while await metric(session, "deepcoder_sandbox_queued_submissions") < 1:
                    await asyncio.sleep(0.01)
            assert server.stop(within_s=40) == 0  # the programs take 50 s each
            assert 2 * _LAST_ANSWERS_S <= 2  # the kubelet's grace beyond the drain
            for response, text in await asyncio.gather(*given):
                assert response.status == 503
                assert float(response.headers["Retry-After"]) > 0
                assert "another" in Problem.model_validate_json(text).error


async def test_connection_that_never_finishes_the_head_of_a_request_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr("deepcoder_sandbox.server.serve.KEEP_ALIVE_S", 0.3)
    pool = Pool(ZygoteConfig(), slots=1, worker="here", max_queued=3)
    judge = Judge(
        pool, Tier.LANDLOCK, {}, Metrics(), TestStore(1 << 20), Answers(10, 1 << 20), MemoryBudget(1 << 20), 1 << 20
    )
    serving = asyncio.create_task(serve(judge, Listen(socket=tmp_path / "judge.sock")))
    async with asyncio.timeout(60):
        while not (tmp_path / "judge.sock").exists():
            await asyncio.sleep(0.01)
        for said in (b"", b"POST /v1/judge HTTP/1.1\r\nHost: x\r\nX-Slow: "):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "judge.sock"))
            writer.write(said)
            assert await reader.read() == b""
            writer.close()
        os.kill(os.getpid(), signal.SIGTERM)
        await serving
    assert pool.draining
    assert not (tmp_path / "judge.sock").exists()


async def test_metrics_tell_verdicts_phases_load_memory_and_confinement(tmp_path):
    with Server(tmp_path, "--slots", "1") as server:
        async with server.session() as session:
            await post(session, submission("a", "print(1)", ("", "1"), ("", "2")))
            await post(session, submission("a", "print(1)", ("", "1"), ("", "2")))
            await post(session, {})
            async with session.get("/metrics") as response:
                text = await response.text()
    for line in (
        'verdicts_total{verdict="passed"} 1.0',
        'verdicts_total{verdict="wrong_answer"} 1.0',
        'submissions_total{outcome="failed",scoring="strict"} 1.0',
        'phase_seconds_count{phase="queue"} 1.0',
        'phase_seconds_count{phase="zygote"} 1.0',
        'phase_seconds_count{phase="run"} 1.0',
        'phase_seconds_count{phase="compare"} 1.0',
        'recycled_zygotes_total{reason="runs"} 0.0',
        'recycled_zygotes_total{reason="zygote_failed"} 0.0',
        'refused_requests_total{status="400"} 1.0',
        "repeated_answers_total 1.0",
        "slots 1.0",
        "busy_slots 0.0",
        "queued_submissions 0.0",
        'held_bytes{what="submissions"} 0.0',
        'limit_enforced{limit="memory"} 1.0',
    ):
        assert f"deepcoder_sandbox_{line}" in text
    values = {line.split(" ")[0]: float(line.split(" ")[1]) for line in text.splitlines() if line[0] != "#"}
    assert values['deepcoder_sandbox_phase_seconds_sum{phase="run"}'] > 0
    assert values['deepcoder_sandbox_held_bytes{what="answers"}'] > 0
    assert sum(value for name, value in values.items() if "isolation_tier" in name) == 1
    assert values["process_open_fds"] > 0


def record(message, *arguments, error=None, **extra):
    made = logging.LogRecord(
        "deepcoder_sandbox", logging.WARNING, __file__, 1, message, arguments, error and (type(error), error, None)
    )
    vars(made).update(extra)
    return made


@pytest.mark.parametrize("formatter", [JsonFormatter(), PlainFormatter()])
def test_logged_text_is_escaped_and_cut_so_that_it_forges_no_line(formatter):
    hostile = '\n{"level": "info"}\x1b[31m\u2028\ud800' + "x" * 100_000
    line = formatter.format(record("failed: %s", hostile, submission=hostile))
    assert line.isascii()
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    assert len(line) < 3 * MAX_CHARS


def test_log_line_is_json_with_what_it_is_about():
    try:
        raise ValueError("y" * 100_000)
    except ValueError as caught:
        made = record("no verdict", submission="a/1", scoring="strict")
        made.exc_info = (ValueError, caught, caught.__traceback__)
    line = json.loads(JsonFormatter().format(made))
    assert (line["level"], line["message"], line["submission"], line["scoring"]) == (
        "warning",
        "no verdict",
        "a/1",
        "strict",
    )
    assert len(line["exception"]) <= MAX_CHARS


@pytest.mark.parametrize("formatter", [JsonFormatter(), PlainFormatter()])
def test_logged_traceback_is_escaped_and_cut_so_that_it_forges_no_line(formatter):
    forged = "2026-01-01 00:00:00,000 ERROR all is lost"
    try:
        raise ValueError(f"\x1b[31m{'y' * 100_000}\n{forged}")
    except ValueError as caught:
        made = record("a request failed")
        made.exc_info = (ValueError, caught, caught.__traceback__)
    text = formatter.format(made)
    assert "\x1b" not in text
    assert len(text) < 3 * MAX_CHARS
    assert "all is lost" in text
    assert forged not in text.splitlines()


async def test_logs_of_a_server_are_json_and_name_submissions_it_failed_on_without_their_output(tmp_path):
    with Server(tmp_path, "--slots", "1") as server:
        async with server.session() as session:
            await post(session, submission("first", "print(1)", ("", "1")))  # the slot has its zygote from here on
            code = "print('what the program says')\nimport time\ntime.sleep(60)"
            _, text = await post(session, submission("the\nid", code, ("", "1"), time_limit_s=30, deadline_s=3))
            assert JudgeResponse.model_validate_json(text).passed is None
        server.stop()
        lines = [json.loads(line) for line in server.log]
    failures = [line for line in lines if line.get("submission") == "the\\nid"]
    assert len(failures) == 1
    assert failures[0]["level"] == "warning"
    assert "what the program says" not in json.dumps(lines)


async def test_request_that_is_no_http_is_answered_and_fills_no_log(tmp_path):
    """Anyone who reaches a judge could write tracebacks into its log."""
    bad = [b"GET / HTTP/1.1\r\nHost: a\r\nno header\r\n\r\n"]
    bad += [b"POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: 8\r\n\r\nnot gzip"]
    with Server(tmp_path, "--slots", "1") as server:
        for request in bad:
            reader, writer = await asyncio.open_unix_connection(tmp_path / "judge.sock")
            writer.write(request)
            async with asyncio.timeout(60):
                assert (await reader.read()).split()[1] in (b"400", b"401")
            writer.close()
        server.stop()
        lines = [json.loads(line) for line in server.log]
    assert [line for line in lines if line["level"] != "info"] == []


ORPHANS = """
import os, signal, sys, time
from deepcoder_sandbox.server.pid1 import split_off
status = split_off()
if status is not None:
    sys.exit(status)
for _ in range(5):
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.1)
        os._exit(0)
    os.wait()
def processes():
    return [name for name in os.listdir("/proc") if name.isdigit()]
def leave(*_):
    print(len(processes()), flush=True)
    os._exit(7)
signal.signal(signal.SIGTERM, leave)
until = time.monotonic() + 60
while len(processes()) > 2 and time.monotonic() < until:  # a zombie would stay
    time.sleep(0.01)
os.kill(1, signal.SIGTERM)
time.sleep(20)
"""


@pytest.mark.root
@pytest.mark.parametrize(("end", "status"), [("os._exit(7)", 7), ("os.kill(os.getpid(), 9)", 137)])
def test_pid_1_reaps_what_it_did_not_start_passes_signals_on_and_ends_as_the_server_does(end, status):
    if os.geteuid() != 0:
        pytest.skip("pid 1 of a namespace needs root")
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", ORPHANS.replace("os._exit(7)", end)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stderr
    assert done.stdout == "2\n"


LOOK = """
import ctypes, sys
from deepcoder_sandbox import __main__ as command
command.run = lambda arguments: print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)) or 0  # PR_GET_DUMPABLE
command.main()
"""


def test_no_process_of_the_same_user_can_look_into_the_command():
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "0\n"
