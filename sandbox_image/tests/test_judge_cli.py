"""The command line, as processes: batches in order, refusals with status 64, a server that drains on SIGTERM."""

import asyncio
import contextlib
import json
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import aiohttp
import pytest

from deepcoder_contracts.judge import JudgeRequest, TestCase
from deepcoder_sandbox import cli
from deepcoder_sandbox.api import Judge, Refused

COMMAND = [sys.executable, "-m", "deepcoder_sandbox"]


def line(number, **fields):
    code = "print(input())" if number % 2 else "print('wrong')"
    body = {"id": str(number), "code": code, "tests": [{"input": str(number), "output": str(number)}]}
    return json.dumps({**body, **fields})


def run(*arguments, text=""):
    return subprocess.run([*COMMAND, *arguments], input=text, capture_output=True, text=True, timeout=120)


def test_batch_answers_in_order_and_a_bad_line_does_not_stop_it():
    lines = [line(n) for n in range(12)]
    lines[3] = "{broken"
    lines[7] = line(7, language="rust")
    done = run("judge", "--workers", "2", text="\n".join(lines) + "\n")
    answers = [json.loads(text) for text in done.stdout.splitlines()]
    assert done.returncode == 1
    assert [answer.get("id") for answer in answers] == [str(n) if n not in (3, 7) else None for n in range(12)]
    assert answers[3]["field"] == "body"
    assert answers[7]["field"] == "language"
    assert [answer["passed"] for answer in answers if "id" in answer] == [
        bool(n % 2) for n in range(12) if n not in (3, 7)
    ]


def test_batch_scoring_overrides_the_lines():
    done = run("judge", "--scoring", "livecodebench", text=line(1) + "\n")
    assert done.returncode == 0
    assert json.loads(done.stdout)["lcb"] == {"results": [True], "error_code": None}


def test_reader_that_leaves_ends_a_batch_quietly():
    lines = "".join(line(n) + "\n" for n in range(400))
    judge = subprocess.Popen(
        [*COMMAND, "judge", "--workers", "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with judge:
        feeder = threading.Thread(target=feed, args=(judge.stdin, lines.encode()))
        feeder.start()
        assert json.loads(judge.stdout.readline())["id"] == "0"
        judge.stdout.close()
        assert judge.wait(60) == 141
        feeder.join()
        assert b"Broken pipe" not in judge.stderr.read()


def feed(sink, data):
    with contextlib.suppress(BrokenPipeError):
        sink.write(data)
    with contextlib.suppress(BrokenPipeError):
        sink.close()


def test_output_that_cannot_be_written_is_no_bad_usage():
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "judge"], input=line(1).encode(), stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert done.returncode == 74
    assert b"unfinished" in done.stderr


def test_batch_of_nothing_is_nothing():
    done = run("judge")
    assert (done.returncode, done.stdout) == (0, "")


def test_capacity_says_what_is_enforced():
    done = run("capacity")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] in ("Namespaces", "Landlock")
    assert "NOT" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        (("serve",), "--token-file"),
        (("serve", "--token-file", "/nonexistent"), "cannot read"),
        (("judge", "--workers", "0"), "at least 1"),
        (("judge", "--scoring", "lenient"), "invalid choice"),
        (("serve", "--minimum-tier", "gVisor"), "invalid choice"),
        ((), "required"),
    ],
)
def test_bad_usage_exits_64_with_the_mend(arguments, mend, capsys):
    try:
        status = cli.run(list(arguments))
    except SystemExit as leaving:
        status = leaving.code
    assert status == 64
    assert mend in capsys.readouterr().err


def test_socket_path_that_is_taken_is_refused_and_left_alone(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    assert cli.run(["serve", "--socket", str(file)]) == 64
    assert "is no socket" in capsys.readouterr().err
    assert file.read_text() == "mine"
    with socket.socket(socket.AF_UNIX) as served:
        served.bind(str(tmp_path / "served"))
        served.listen()
        assert cli.run(["serve", "--socket", str(tmp_path / "served")]) == 64
    assert "served already" in capsys.readouterr().err
    assert (tmp_path / "served").exists()


async def test_server_on_a_socket_judges_and_drains_on_sigterm(tmp_path):
    path = tmp_path / "judge.sock"
    server = subprocess.Popen(
        [*COMMAND, "serve", "--socket", str(path), "--slots", "1"], stderr=subprocess.PIPE, text=True
    )
    try:
        for text in server.stderr:
            if "listening" in text:
                break
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
            async with session.post("http://judge/v1/judge", data=line(1)) as response:
                assert (await response.json())["passed"] is True
            slow = line(3, code="import time\ntime.sleep(0.7)\nprint(3)")
            under_way = asyncio.ensure_future(session.post("http://judge/v1/judge", data=slow))
            busy = 0
            while not busy:
                async with session.get("http://judge/v1/capacity") as response:
                    busy = (await response.json())["busy"]
            server.send_signal(signal.SIGTERM)
            response = await under_way
            assert (await response.json())["passed"] is True
        assert server.wait(30) == 0
        assert not path.exists()
    finally:
        server.kill()
        server.wait()
        server.stderr.close()


def test_python_api_judges_many_in_order_and_refuses_nonsense():
    tests = [TestCase(input="1", output="1")]
    with Judge(slots=2) as judge:
        requests = [JudgeRequest(id=str(n), code=f"print({n % 2})", tests=tests) for n in range(20)]
        answers = list(judge.judge_many(requests))
        assert [answer.id for answer in answers] == [str(n) for n in range(20)]
        assert [answer.passed for answer in answers] == [bool(n % 2) for n in range(20)]
        with pytest.raises(Refused, match="NUL"):
            judge.judge(JudgeRequest(id="x", code="\0", tests=tests))
        with pytest.raises(Refused, match="no store"):
            judge.judge(JudgeRequest(id="x", code="1", tests_sha256="0" * 64))
