"""The dashboard as a process with the chart's rights, for tests of what people see."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chart_account import Account
from free_ports import free_port

START_SECONDS = 60.0


@contextmanager
def serving(account: Account, directory: Path, **changes: Any) -> Iterator[str]:
    """Start it as the chart configures it, on free ports, and end it; its address on loopback."""
    port, health = free_port(), free_port()
    config = directory / "config.yaml"
    config.write_text(json.dumps(account.config | {"port": port, "healthPort": health} | changes))
    command = [sys.executable, "-m", "deepcoder_web", "serve", "--config", str(config)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    environment["KUBECONFIG"] = str(account.kubeconfig)
    with (directory / "web.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait_ready(f"http://127.0.0.1:{health}/readyz", process, directory / "web.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            assert process.wait(20) == 0, "it ends by itself when it is told to"


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"the dashboard was not ready in {START_SECONDS:.0f} s:\n{log.read_text()[-3000:]}")
