"""Real `deepcoder-sandbox` servers that come and go as a pool's pods do: one loopback address each, one port."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from free_ports import free_port

READY_SECONDS = 60.0


@dataclass(frozen=True)
class JudgeServer:
    """One of them."""

    process: subprocess.Popen[bytes]
    address: str
    port: int


@contextmanager
def judge_server(token: Path, address: str = "127.0.0.1", port: int = 0, slots: int = 2) -> Iterator[JudgeServer]:
    """A server that is being started; it ends with the block, if it has not before."""
    port = port or free_port()
    program = Path(sys.executable).with_name("deepcoder-sandbox")
    command = [program, "serve", "--host", address, "--port", str(port), "--token-file", token, "--slots", str(slots)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={"PATH": "/usr/bin:/bin"}
    )
    try:
        _wait_until_ready(process, f"http://{address}:{port}/readyz")
        yield JudgeServer(process, address, port)
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except (OSError, urllib.error.URLError):
            assert process.poll() is None, process.returncode
            assert time.monotonic() < deadline
            time.sleep(0.05)
