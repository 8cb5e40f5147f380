"""A real S3 server (versitygw) on loopback: signatures, checksums and conditional writes are enforced."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from free_ports import free_port

from devcluster import doctor
from devcluster.artifacts import Artifacts
from devcluster.config import cache_root

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

START_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1
BUCKET = "deepcoder"
ACCESS, SECRET = "test-access", "test-secret"


@dataclass(frozen=True)
class S3Server:
    """Where it is."""

    endpoint: str

    @cache  # noqa: B019  there are few servers, and making a client takes longer than most of what is asked of it
    def client(self, secret: str = SECRET) -> S3Client:
        """A client; threads may share it."""
        return boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id=ACCESS,
            aws_secret_access_key=secret,
        )  # fmt: skip


def program() -> Path | None:
    """The built program, None if there is none."""
    path = Artifacts(cache_root(), doctor.go_version()).programs()["versitygw"]
    return path if path.exists() else None


@contextmanager
def running(directory: Path, path: Path) -> Iterator[S3Server]:
    """Start it with an empty bucket, and end it."""
    port = free_port()
    data = directory / "s3"
    (data / "buckets").mkdir(parents=True)
    (data / "iam").mkdir()
    environment = os.environ | {
        "ROOT_ACCESS_KEY_ID": ACCESS,
        "ROOT_SECRET_ACCESS_KEY": SECRET,
        "VGW_PORT": f"127.0.0.1:{port}",
        "VGW_REGION": "us-east-1",
    }
    command = [str(path), f"--iam-dir={data}/iam", f"{data}/buckets"]
    with (directory / "s3.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, preexec_fn=_die_with_parent)
    try:
        server = S3Server(f"http://127.0.0.1:{port}")
        _wait(server, process, directory / "s3.log")
        yield server
    finally:
        process.kill()
        process.wait(10)


def _wait(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the bucket is made."""
    end = time.monotonic() + START_SECONDS
    client: Any = server.client()
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            return
        except Exception as e:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the S3 server is not ready: {e}\n{log.read_text(errors='replace')[-2000:]}") from e
            time.sleep(0.1)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
