"""The command line: batches in order, refusals with status 64, a server that drains on SIGTERM.

A process of the command loads its modules and attacks itself before it does anything, which takes several times the
CPU time of a short batch. So tests of what a batch answers run the command in this process, without the attack. Tests
of signals, closed descriptors and a reader that leaves start a process.
"""

import asyncio
import contextlib
import io
import json
import os
import pty
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from deepcoder_contracts.judge import JudgeResponse
from deepcoder_sandbox import batch, cli, tiers
from deepcoder_sandbox.attack import Findings
from deepcoder_sandbox.pool import Draining

COMMAND = [sys.executable, "-m", "deepcoder_sandbox"]


def line(number, **fields):
    code = "print(input())" if number % 2 else "print('wrong')"
    body = {"id": str(number), "code": code, "tests": [{"input": str(number), "output": str(number)}]}
    return json.dumps({**body, **fields})


def run(*arguments, text=""):
    return subprocess.run([*COMMAND, *arguments], input=text, capture_output=True, text=True, timeout=120)


@pytest.fixture
def unattacked(monkeypatch) -> None:
    """In this process, the command assumes that the minimum tier holds. Other files test the attack that finds out."""

    def find_tier(config, minimum):
        return replace(config, tier=minimum), Findings(minimum, {})

    monkeypatch.setattr(tiers, "find_tier", find_tier)


@pytest.fixture
def run_here(unattacked) -> Callable[..., tuple[int, bytes]]:
    """Run the command in this process: `run_here(*arguments, given=b"")` to its status and what it wrote to stdout."""

    def command(*arguments, given=b"", stdout=None):
        with contextlib.ExitStack() as stack:
            source, sink = stack.enter_context(tempfile.TemporaryFile()), stack.enter_context(tempfile.TemporaryFile())
            source.write(given)
            source.seek(0)
            for number, file in enumerate((source, stdout or sink)):
                kept = os.dup(number)
                stack.callback(os.close, kept)
                stack.callback(os.dup2, kept, number)
                os.dup2(file.fileno(), number)
            status = cli.run(list(arguments))
            sink.seek(0)
            return status, sink.read()

    return command


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


def test_batch_scoring_overrides_the_lines(run_here):
    status, answers = run_here("judge", "--scoring", "livecodebench", given=line(1).encode() + b"\n")
    assert status == 0
    assert json.loads(answers)["lcb"] == {"results": [True], "error_code": None}


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


def test_output_that_cannot_be_written_is_no_bad_usage(run_here, capsys):
    with Path("/dev/full").open("wb") as full:
        status, _ = run_here("judge", given=line(1).encode(), stdout=full)
    assert status == 74
    assert "unfinished" in capsys.readouterr().err


def test_line_that_makes_no_sense_is_named_and_costs_only_itself(run_here):
    lines = [
        line(1),
        "",
        json.dumps({key: value for key, value in json.loads(line(1)).items() if key != "id"}),
        line(1, tests=[]),
        line(1, code="\0"),
        line(1, code="x" * (50 << 20)),
        "\udcff",
        line(1, code="\ud800"),
        "[" * 100_000,
        line(1, tests=None, tests_sha256="0" * 64),
        line(1, tests=[{"input": "x" * 10_000_000, "output": 3}]),
        "   ",
        line(3),
    ]
    status, written = run_here("judge", given="\n".join(lines).encode("utf-8", "surrogateescape"))
    answers = [json.loads(each) for each in written.splitlines()]
    assert status == 1
    assert answers[0]["passed"] is answers[-1]["passed"] is True
    problems = [(answer["error"].split(":")[0], answer["field"]) for answer in answers[1:-1]]
    fields = ["id", "tests", "code", "code", "body", "body", "body", "tests_sha256", "tests.0.output"]
    assert problems == list(zip([f"line {n}" for n in range(3, 12)], fields, strict=True))
    assert all(len(each) < 1000 for each in written.splitlines())


def test_line_that_is_too_long_is_not_kept(monkeypatch):
    monkeypatch.setattr(batch, "LINE_BYTES", 1000)
    source = io.BytesIO(b"\n".join([b"a" * 999, b"b" * 1000, b"c" * 5000, b"", b"d" * 1999, b"e"]))
    kept = list(batch._lines(source))
    assert [(number, content and content[:1]) for number, content in kept] == [
        (1, b"a"),
        (2, None),
        (3, None),
        (5, None),
        (6, b"e"),
    ]


class HoldingPool:
    """Takes what it is given, and judges none of it before it is told to."""

    slots = 4

    def __init__(self):
        self.taken: list[Future] = []

    def submit(self, submission, queue_counts):
        self.taken.append(Future())
        return self.taken[-1]

    def close(self, timeout_s):
        for answer in self.taken:
            if not answer.done():
                answer.set_exception(Draining("closed"))

    def judge(self, number):
        verdict = {"verdict": "passed", "seconds": 0}
        answer = {"id": str(number), "passed": True, "verdicts": [verdict], "seconds": 0, "worker": "w"}
        self.taken[number].set_result(JudgeResponse.model_validate(answer))


def test_batch_of_long_lines_is_read_ahead_by_bytes(monkeypatch):
    monkeypatch.setattr(batch, "AHEAD_BYTES", 250_000)
    tests = [{"input": "1" * 100_000, "output": ""}]
    source = io.BytesIO(b"".join(line(n, tests=tests).encode() + b"\n{}\n" for n in range(12)))
    pool, sink, ended = HoldingPool(), io.BytesIO(), []
    batching = threading.Thread(target=lambda: ended.append(batch.run(source, sink, pool, None)))
    batching.start()
    until = time.monotonic() + 30
    for number in range(12):
        while len(pool.taken) <= min(number + 1, 11):
            assert time.monotonic() < until
            time.sleep(0.001)
        time.sleep(0.02)  # in which it would read on
        assert len(pool.taken) == min(number + 2, 12)  # two fit, and no third
        pool.judge(number)
    batching.join(30)
    assert ended == [1]  # for the lines that are no requests
    answers = [json.loads(text) for text in sink.getvalue().splitlines()]
    assert [answer.get("id", answer.get("field")) for answer in answers] == [
        name for n in range(12) for name in (str(n), "id")
    ]


def test_line_longer_than_all_that_may_be_read_ahead_is_judged(monkeypatch):
    monkeypatch.setattr(batch, "AHEAD_BYTES", 10)
    pool, sink, ended = HoldingPool(), io.BytesIO(), []
    source = io.BytesIO((line(1) + "\n" + line(3) + "\n").encode())
    batching = threading.Thread(target=lambda: ended.append(batch.run(source, sink, pool, None)))
    batching.start()
    until = time.monotonic() + 30
    for number in range(2):
        while len(pool.taken) <= number:
            assert time.monotonic() < until
            time.sleep(0.001)
        pool.judge(number)
    batching.join(30)
    assert ended == [0]


def test_lines_that_are_no_requests_leave_room_for_those_after_them(monkeypatch):
    monkeypatch.setattr(batch, "AHEAD_BYTES", 1000)
    pool, ended = HoldingPool(), []
    source = io.BytesIO(b'{"id": "%b"}\n' % (b"x" * 600) * 3 + line(1).encode())
    batching = threading.Thread(target=lambda: ended.append(batch.run(source, io.BytesIO(), pool, None)), daemon=True)
    batching.start()
    until = time.monotonic() + 30
    while not pool.taken:
        assert time.monotonic() < until
        time.sleep(0.001)
    pool.judge(0)
    batching.join(30)
    assert ended == [1]


def test_answer_does_not_wait_for_the_next_line():
    with subprocess.Popen(
        [*COMMAND, "judge", "--workers", "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as judge:
        for number in (1, 2, 3):
            judge.stdin.write(line(number).encode() + b"\n")
            judge.stdin.flush()
            assert json.loads(judge.stdout.readline())["id"] == str(number)
        judge.stdin.close()
        assert judge.wait(30) == 0


def test_interrupted_batch_leaves_at_once_with_what_was_answered():
    with subprocess.Popen(
        [*COMMAND, "judge", "--workers", "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as judge:  # fmt: skip
        judge.stdin.write(
            line(1).encode() + b"\n" + line(2, code="import time\ntime.sleep(50)", time_limit_s=60).encode() + b"\n"
        )
        judge.stdin.flush()
        assert json.loads(judge.stdout.readline())["passed"] is True
        judge.send_signal(signal.SIGINT)
        assert judge.wait(30) == 130
        assert b"Traceback" not in judge.stderr.read()


def test_line_that_the_judge_failed_on_is_told_by_the_exit_status(run_here):
    sleeps = line(1, code="import time\ntime.sleep(20)", deadline_s=0.2)
    status, answers = run_here("judge", given=f"{sleeps}\n{line(1)}\n".encode())
    assert [json.loads(each)["passed"] for each in answers.splitlines()] == [None, True]
    assert status == 1


@pytest.mark.early
def test_deadline_of_a_line_counts_from_when_its_judging_begins(run_here):
    slow = line(1, code="import time\ntime.sleep(1.2)\nprint(input())", deadline_s=8)  # and 9.6 s for all
    _, answers = run_here("judge", "--workers", "1", given=(slow + "\n").encode() * 8)
    assert [json.loads(each)["passed"] for each in answers.splitlines()] == [True] * 8


def read_to_the_end(terminal):
    """What was written to a terminal that nobody has open any more: the kernel hands it over piece by piece."""
    content = b""
    with contextlib.suppress(OSError):  # EIO: nobody can write any more
        while True:
            content += os.read(terminal, 10_000)
    return content


def test_progress_is_shown_to_a_terminal_and_to_nothing_else(run_here, monkeypatch, capsys):
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as shown_there:
        shown_there.setattr(sys, "stderr", terminal)
        _, answers = run_here("judge", given=line(1).encode() + b"\n{\n")
    shown = read_to_the_end(ours).decode()
    os.close(ours)
    assert len(answers.splitlines()) == 2
    assert "2 answered, 1 passed" in shown
    assert "1 no requests" in shown
    run_here("judge", given=line(1).encode())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("closed", [0, 1])
def test_closed_input_or_output_is_said_and_no_traceback(closed):
    done = subprocess.run(
        [*COMMAND, "judge"], stderr=subprocess.PIPE, timeout=60, preexec_fn=lambda: os.close(closed), check=False
    )
    assert done.returncode == 74
    assert b"Bad file descriptor" in done.stderr
    assert b"Traceback" not in done.stderr


def test_batch_of_nothing_is_nothing(run_here):
    assert run_here("judge") == (0, b"")


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
        (("serve", "--port", "65536"), "from 0 to 65535"),
        (("serve", "--port", "-1"), "from 0 to 65535"),
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


def test_socket_path_that_is_taken_is_refused_and_left_alone(unattacked, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    assert cli.run(["serve", "--socket", str(file)]) == 64
    assert "is not a socket" in capsys.readouterr().err
    assert file.read_text() == "mine"
    with socket.socket(socket.AF_UNIX) as served:
        served.bind(str(tmp_path / "served"))
        served.listen()
        assert cli.run(["serve", "--socket", str(tmp_path / "served")]) == 64
    assert "served already" in capsys.readouterr().err
    assert (tmp_path / "served").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])  # as from a terminal
async def test_server_on_a_socket_judges_and_drains_on_sigterm(tmp_path, number):
    path, packages = tmp_path / "judge.sock", tmp_path / "packages"
    packages.mkdir()
    may_go_on = packages / "may_go_on"
    command = [*COMMAND, "serve", "--socket", str(path), "--slots", "1", "--packages", str(packages)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for text in server.stderr:
            if "listening" in text:
                break
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
            async with session.post("http://judge/v1/judge", data=line(1)) as response:
                assert (await response.json())["passed"] is True
            code = f"import os, time\nwhile not os.path.exists({str(may_go_on)!r}): time.sleep(0.01)\nprint(3)"
            slow = line(3, code=code, time_limit_s=60)
            under_way = asyncio.ensure_future(session.post("http://judge/v1/judge", data=slow))
            busy = 0
            while not busy:
                async with session.get("http://judge/v1/capacity") as response:
                    busy = (await response.json())["busy"]
            server.send_signal(number)
            assert any("draining: 1 being judged" in text for text in server.stderr)
            may_go_on.touch()
            response = await under_way
            assert (await response.json())["passed"] is True
        assert server.wait(30) == 0
        assert not path.exists()
    finally:
        server.kill()
        server.wait()
        server.stderr.close()
