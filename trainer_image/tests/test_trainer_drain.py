"""`drain --wait` from another process: the driver on this machine, and one seen only through Ray's own store."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepcoder_trainer.__main__ import main as cli_main
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.running import drain
from deepcoder_trainer.stopping import Moment, Stop

DRIVER = """
import asyncio, sys
from deepcoder_trainer.running import drain
from deepcoder_trainer.running.drain import Driver
from deepcoder_trainer.stopping import Moment, Stop, stop_on_signals

drain.LEAVE_SECONDS = 60.0  # what is told at the end is looked at, however slow Ray is

async def main():
    stop = Stop()
    stop_on_signals(stop, 10)
    if len(sys.argv) > 1:
        import ray
        ray.init(address=sys.argv[1], log_to_driver=False)
        stop_on_signals(stop, 10)
    with Driver() as driver:
        watching = asyncio.create_task(driver.watch(stop, 10))
        print("up", flush=True)
        await stop.reached(Moment.ASKED)
        print(stop.reason, flush=True)
        watching.cancel()

asyncio.run(main())  # deepcoder
"""


def start_driver(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments],
        env={**os.environ, "TMPDIR": str(tmp_path), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def run_drain(tmp_path: Path, **environment: str) -> int:
    command = [sys.executable, "-m", "deepcoder_trainer", "drain", "--wait", "--timeout", "60"]
    done = subprocess.run(command, env={**os.environ, "TMPDIR": str(tmp_path), **environment}, timeout=120)
    return done.returncode


def test_a_driver_on_this_machine_is_asked_and_waited_for(tmp_path: Path) -> None:
    driver = start_driver(tmp_path)
    assert run_drain(tmp_path) == 0
    assert driver.wait(20) == 0, "it had left before drain returned"
    assert driver.stdout is not None
    assert driver.stdout.read() == "drain\n"


def test_without_a_driver_there_is_nothing_to_wait_for(tmp_path: Path) -> None:
    assert run_drain(tmp_path) == 0


def test_who_is_asked_is_said_and_that_nobody_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(drain.tempfile, "gettempdir", lambda: str(tmp_path))
    assert drain.main(argparse.Namespace(wait=True, timeout=60.0)) == 0
    assert "no run of this user's is under way here" in capsys.readouterr().err
    driver = start_driver(tmp_path)
    assert drain.main(argparse.Namespace(wait=False, timeout=60.0)) == 0
    assert capsys.readouterr().err.endswith(f"asked to save and leave: {driver.pid}\n")
    assert driver.wait(20) == 0


def test_a_driver_that_was_killed_leaves_nothing_that_ends_whoever_has_its_number(tmp_path: Path) -> None:
    driver = start_driver(tmp_path)
    driver.kill()
    driver.wait()
    [folder] = tmp_path.glob("deepcoder-trainer-*")
    [left] = folder.iterdir()
    other = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)  # a deepcoder program of another kind"]
    )
    left.rename(folder / str(other.pid))
    try:
        assert run_drain(tmp_path) == 0
        assert other.poll() is None
        assert not list(folder.iterdir())
    finally:
        other.kill()
        other.wait()


def test_a_driver_that_begins_while_a_killed_one_of_its_number_is_cleared_away_keeps_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = drain._folder()
    folder.mkdir(mode=0o700)
    left = folder / "4194303"
    left.touch()
    begins = threading.Thread(target=drain._hold, args=(left,))
    unlink = Path.unlink

    def meanwhile(path: Path, *, missing_ok: bool = False) -> None:
        begins.start()
        begins.join(0.5)  # as far as it comes
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", meanwhile)
    assert drain._local_drivers() == {}
    begins.join(30)
    assert list(drain._local_drivers()) == [4194303]


@pytest.mark.parametrize("whose", ["another user's", "everybody's", "a link", "a file"])
def test_a_folder_that_somebody_else_made_for_this_user_is_neither_written_into_nor_believed(
    whose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(drain.tempfile, "gettempdir", lambda: str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    folder = drain._folder()
    if whose == "a link":
        folder.symlink_to(elsewhere)
    elif whose == "a file":
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(0o777 if whose == "everybody's" else 0o755)
    if whose == "another user's":
        monkeypatch.setattr(drain.os, "getuid", lambda: os.geteuid() + 1)
        folder.rename(drain._folder())
    with pytest.raises(BadConfig, match=r"owner \d+\): remove it, or set TMPDIR"), drain.Driver():
        pytest.fail("a run would go on")
    assert cli_main(["drain"]) == 64
    assert "set TMPDIR to a folder of your own" in capsys.readouterr().err
    assert not list(elsewhere.iterdir())


def test_a_driver_in_another_pod_is_asked_through_ray_and_nobody_waits_for_a_dead_one(
    tmp_path: Path, ray_cluster: None
) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    (tmp_path / "head").mkdir()
    (tmp_path / "learner").mkdir()
    driver = start_driver(tmp_path / "head", address, RAY_ADDRESS=address)
    from ray.experimental.internal_kv import _internal_kv_get

    deadline = time.monotonic() + 30
    while _internal_kv_get(b"deepcoder/beat") is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert run_drain(tmp_path / "learner", RAY_ADDRESS=address) == 0
    assert driver.stdout is not None
    assert driver.stdout.readline() == "drain\n"
    assert driver.wait(20) == 0
    assert _internal_kv_get(b"deepcoder/beat") is None, "who asks from now on would wait for a driver that has left"


async def test_a_beat_that_is_being_written_when_the_driver_leaves_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.experimental import internal_kv

    store: dict[bytes, bytes] = {}
    writing, left = threading.Event(), threading.Event()

    def put(key: bytes, value: bytes) -> None:
        writing.set()
        assert left.wait(60)
        store[key] = value

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(internal_kv, "_internal_kv_put", put)
    monkeypatch.setattr(internal_kv, "_internal_kv_get", store.get)
    monkeypatch.setattr(internal_kv, "_internal_kv_del", lambda key: store.pop(key, None))
    monkeypatch.setattr(drain.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(drain, "POLL_SECONDS", 0.01)
    monkeypatch.setenv("RAY_ADDRESS", "anywhere")
    with drain.Driver() as driver:
        watching = asyncio.create_task(driver.watch(Stop(), 60))
        assert await asyncio.to_thread(writing.wait, 60)
        watching.cancel()
    [beat] = [thread for thread in threading.enumerate() if thread.name == "_beat"]
    left.set()
    beat.join(60)
    assert store == {}, "who asks from now on would wait for a driver that has left"


def test_pods_of_a_cluster_whose_head_is_gone_do_not_even_look_for_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(drain.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(drain, "_ask_and_wait", lambda wait, alive: pytest.fail("asked a cluster that is no more"))
    assert drain.main(argparse.Namespace(wait=True, timeout=60.0)) == 0


def test_a_head_that_goes_while_one_waits_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{head.getsockname()[1]}")
    monkeypatch.setattr(drain.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(drain, "POLL_SECONDS", 0.05)
    asked = threading.Event()

    def never_answered(wait: bool, alive: threading.Event) -> None:
        asked.set()
        head.close()
        threading.Event().wait()

    monkeypatch.setattr(drain, "_ask_and_wait", never_answered)
    assert drain.main(argparse.Namespace(wait=True, timeout=60.0)) == 0
    assert asked.is_set()


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Exception | None]:
    """How attempts to reach the head end, in order: None means that it is reached. All later ones time out."""
    answers: list[Exception | None] = []
    driver_seen = threading.Event()

    def wait_for_a_driver(wait: bool, alive: threading.Event) -> None:
        alive.set()
        driver_seen.set()
        threading.Event().wait()

    def connect(*_: object) -> contextlib.AbstractContextManager[None]:
        if error := answers.pop(0) if answers else TimeoutError("timed out"):
            if drain._ask_and_wait is wait_for_a_driver:
                driver_seen.wait(60)
            raise error
        return contextlib.nullcontext()

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(drain.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(drain, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(drain, "GONE_SECONDS", 600.0)
    monkeypatch.setattr(drain, "_ask_and_wait", wait_for_a_driver)
    monkeypatch.setattr(drain.socket, "create_connection", connect)
    return answers


def test_a_head_that_is_not_reached_once_does_not_end_the_wait(head: list[Exception | None]) -> None:
    head += [None, None, TimeoutError("timed out"), OSError(113, "No route to host"), None, ConnectionRefusedError()]
    assert drain.main(argparse.Namespace(wait=True, timeout=600.0)) == 0
    assert not head, "the wait ended before nothing listened at the head"


def test_a_head_that_is_not_reached_before_a_driver_is_known_ends_the_wait_at_once(
    head: list[Exception | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    head += [None, None]
    monkeypatch.setattr(drain, "_ask_and_wait", lambda wait, alive: threading.Event().wait())
    assert drain.main(argparse.Namespace(wait=True, timeout=60.0)) == 0


def test_a_head_that_is_not_reached_any_more_ends_the_wait(
    head: list[Exception | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    head += [None]
    monkeypatch.setattr(drain, "GONE_SECONDS", 0.05)
    assert drain.main(argparse.Namespace(wait=True, timeout=60.0)) == 0


def test_a_store_that_fails_for_a_moment_does_not_end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.experimental import internal_kv

    answers: list[bytes | Exception | None] = [b"1", RuntimeError("GCS is busy"), b"2", RuntimeError("again"), None]

    def get(key: bytes) -> bytes | None:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(drain, "GONE_SECONDS", 600.0)
    asked = [RuntimeError("GCS is busy")]

    def put(key: bytes, value: bytes) -> None:
        if asked:
            raise asked.pop()

    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(internal_kv, "_internal_kv_put", put)
    monkeypatch.setattr(internal_kv, "_internal_kv_get", get)
    monkeypatch.setattr(drain, "POLL_SECONDS", 0.01)
    alive = threading.Event()
    drain._ask_and_wait(True, alive)
    assert alive.is_set()
    assert answers == [], "the wait ended before the driver had left"


def test_a_store_that_fails_for_good_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.experimental import internal_kv

    def fails(*_: object) -> None:
        raise RuntimeError("no GCS")

    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(internal_kv, "_internal_kv_put", fails)
    monkeypatch.setattr(drain, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(drain, "GONE_SECONDS", 0.05)
    with pytest.raises(RuntimeError, match="no GCS"):
        drain._ask_and_wait(True, threading.Event())


async def test_blocking_work_of_the_attempt_does_not_hold_heartbeats_back(monkeypatch: pytest.MonkeyPatch) -> None:
    release, beaten = threading.Event(), threading.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    blocked = asyncio.create_task(asyncio.to_thread(release.wait))

    def beat(number: int, left: threading.Event) -> bool:
        beaten.set()
        return True

    monkeypatch.setenv("RAY_ADDRESS", "anywhere")
    monkeypatch.setattr(drain, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(drain, "_beat", beat)
    stop = Stop()
    watching = asyncio.create_task(drain.Driver().watch(stop, 60))
    try:
        async with asyncio.timeout(30):
            await stop.reached(Moment.ASKED)
    finally:
        release.set()
        watching.cancel()
        await blocked
    assert beaten.is_set()


async def test_a_store_that_fails_for_a_while_does_not_make_the_driver_deaf(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter([RuntimeError("no GCS"), RuntimeError("no GCS"), False, True])

    def beat(number: int, left: threading.Event) -> bool:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setenv("RAY_ADDRESS", "anywhere")
    monkeypatch.setattr(drain, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(drain, "_beat", beat)
    stop = Stop()
    watching = asyncio.create_task(drain.Driver().watch(stop, 60))
    async with asyncio.timeout(60):
        await stop.reached(Moment.ASKED)
    watching.cancel()
    assert caplog.text.count("cannot be heard") == 1
