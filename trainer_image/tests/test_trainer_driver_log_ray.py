"""The trainer's log under Ray's own job supervisor, which is how KubeRay's HTTPMode runs it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from deepcoder_contracts.layout import DRIVER_LOG, log_key
from deepcoder_contracts.stage import StageConfig

TRAINER = """
import os, signal, sys, time
from pathlib import Path
from deepcoder_trainer.running.driverlog import save_at_the_end

save_at_the_end(Path(sys.argv[1]))
print("logged in with", os.environ["WANDB_API_KEY"], file=sys.stderr)
print("last words", flush=True)
time.sleep(float(sys.argv[2]))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Any]:
    """A client of the job server of a head of this test's own, in a folder with a short name: sockets lie there."""
    from ray.job_submission import JobSubmissionClient

    with socket.socket() as one, socket.socket() as other:
        for s in (one, other):
            s.bind(("127.0.0.1", 0))
        port, dashboard = (int(s.getsockname()[1]) for s in (one, other))
    folder = Path("/tmp") / f"dc-ray-{os.getpid()}"
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=1"]
    command += [
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        f"--temp-dir={folder}",
        "--node-ip-address=127.0.0.1",
    ]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with (tmp_path / "head.log").open("wb") as printed, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        head = subprocess.Popen(
            command,
            env=environment | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            end = time.monotonic() + 90
            while True:
                try:
                    client = JobSubmissionClient(f"http://127.0.0.1:{dashboard}")
                    break
                except ConnectionError:
                    assert time.monotonic() < end, (tmp_path / "head.log").read_text()
                    time.sleep(0.5)
            yield client
        finally:
            head.terminate()
            try:
                head.wait(40)
            except subprocess.TimeoutExpired:
                os.killpg(head.pid, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_log_is_saved_of_a_driver_that_is_killed_and_of_one_that_the_supervisor_stops(
    jobs: Any, tmp_path: Path, make_config: Callable[..., StageConfig]
) -> None:
    config, path, script = make_config(), tmp_path / "stage.json", tmp_path / "trainer.py"
    path.write_bytes(config.to_json())
    script.write_text(TRAINER)
    saved = Path(urlsplit(config.storage.uri).path) / log_key(config.stage.name, config.ordinal, DRIVER_LOG)
    for seconds, stopped in ((0, False), (600, True)):
        saved.unlink(missing_ok=True)
        variables = {"env_vars": {"WANDB_API_KEY": "the-key-of-the-team"}}
        job = submitted(jobs, f"{sys.executable} {script} {path} {seconds}", variables)
        if stopped:
            wait_for(partial(printed, jobs, job))
            jobs.stop_job(job)
        wait_for(saved.exists)
        assert "logged in with [redacted]\nlast words\n" in saved.read_text()


def submitted(jobs: Any, entrypoint: str, runtime_env: dict[str, Any]) -> str:
    """Its id. A head whose dashboard answers may still be without the agent that starts jobs."""
    for left in reversed(range(6)):
        try:
            return str(jobs.submit_job(entrypoint=entrypoint, runtime_env=runtime_env))
        except RuntimeError:
            if not left:
                raise
            time.sleep(5)
    raise AssertionError("unreachable")


def printed(jobs: Any, job: str) -> bool:
    return "last words" in jobs.get_job_logs(job)


def wait_for(what: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.2)
