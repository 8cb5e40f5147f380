"""The trainer's own judge on one machine: `deepcoder-sandbox serve` as a child process on a Unix socket.

It is started before torch is loaded or a secret is read, with its own environment, because a process that runs
untrusted programs must have nothing to leak. It is a new program, never a fork of the trainer, and it ends with the
trainer even if the trainer is killed. A judge that exits is restarted up to `RESTARTS` times in `RESTART_SECONDS`: a
run of days may lose one now and then, but a judge that cannot run at all should be reported soon.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import aiohttp

from deepcoder_contracts.cpus import cpu_limit
from deepcoder_trainer.errors import BadConfig
from deepcoder_trainer.workdir import Workdir

log = logging.getLogger(__name__)

START_SECONDS = 60.0
STOP_SECONDS = 10.0
WATCH_SECONDS = 1.0
RESTARTS = 3
RESTART_SECONDS = 600.0
BASE_URL = "http://judge"
"""The host name does not matter over a Unix socket."""

LONGEST_SOCKET = 107
"""Longest path of a Unix socket in bytes, without the terminating zero."""

_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV")
# PR_SET_PDEATHSIG: the kernel sends SIGTERM when the trainer's main thread ends, however it ends. If it ended before
# this call, the child notices that it has another parent.
_DIE_WITH_PARENT = (
    "import ctypes,os,sys; ctypes.CDLL(None).prctl(1, 15); os.getppid() == int(sys.argv[1]) or sys.exit(1); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)
_WORDS = 500
"""Bytes of the end of its log that are included when a judge's exit is reported."""


class LocalJudge:
    """The child process and its socket."""

    def __init__(self, workers: int | None = None) -> None:
        self._folder = Workdir("judge")
        self.socket = self._folder.path / "judge.sock"
        if len(os.fsencode(self.socket)) > LONGEST_SOCKET:
            self._folder.remove()
            raise BadConfig(f"{self.socket} is too long for a Unix socket: set TMPDIR to a shorter folder")
        self._workers = workers or cpu_limit()
        self._child = self._spawn()
        self._ended: deque[float] = deque(maxlen=RESTARTS + 1)

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [_program(), "serve", "--socket", str(self.socket), "--slots", str(self._workers)]
        return subprocess.Popen(
            [sys.executable, "-c", _DIE_WITH_PARENT, str(os.getpid()), *command],
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self._folder.path / "log").open("ab"),
            start_new_session=True,  # Ctrl-C is the trainer's alone: it still needs verdicts to drain
        )

    def connector(self) -> aiohttp.UnixConnector:
        """Return the connector with which an HTTP client reaches it. Call it within a running event loop."""
        return aiohttp.UnixConnector(str(self.socket), limit=0)

    async def ready(self) -> None:
        """Wait until it answers. Raises BadConfig with its own message if it refuses to start on this machine."""
        deadline = time.monotonic() + START_SECONDS
        once = aiohttp.ClientTimeout(total=2)
        async with aiohttp.ClientSession(connector=self.connector(), timeout=once, trust_env=False) as http:
            while time.monotonic() < deadline:
                if self._child.poll() is not None:
                    raise BadConfig(
                        f"the local judge ended with status {self._child.returncode}: {self._last_words()}",
                        field="judge.backend",
                    )
                try:
                    async with http.get(f"{BASE_URL}/readyz") as reply:
                        if reply.ok:
                            return
                except (aiohttp.ClientError, TimeoutError):
                    pass
                await asyncio.sleep(0.05)
        raise TimeoutError(f"the local judge did not answer within {START_SECONDS:.0f} s: {self._last_words()}")

    async def watch(self) -> None:
        """Restart it whenever it exits, until cancelled. Raises if it keeps exiting."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if self._child.poll() is None:
                continue
            now = time.monotonic()
            self._ended.append(now)
            log.warning("the local judge ended with status %s: %s", self._child.returncode, self._last_words())
            if len(self._ended) > RESTARTS and now - self._ended[0] < RESTART_SECONDS:
                raise RuntimeError(
                    f"the local judge ended {len(self._ended)} times within {now - self._ended[0]:.0f} s: "
                    f"{self._last_words()}"
                )
            self._child = self._spawn()

    def close(self) -> None:
        """Stop it and remove its socket."""
        self._child.terminate()
        try:
            self._child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait(STOP_SECONDS)
        self._folder.remove()

    def _last_words(self) -> str:
        try:
            with (self._folder.path / "log").open("rb") as log_file:
                log_file.seek(max(0, os.fstat(log_file.fileno()).st_size - _WORDS))
                return log_file.read().decode(errors="replace").strip()
        except OSError:
            return ""


def _program() -> str:
    beside = Path(sys.executable).with_name("deepcoder-sandbox")
    program = str(beside) if beside.exists() else shutil.which("deepcoder-sandbox")
    if program is None:
        raise BadConfig(
            "judge.backend Local needs the program deepcoder-sandbox: install deepcoder-sandbox next to the trainer, "
            "or set judge.backend: Pool",
            field="judge.backend",
        )
    return program
