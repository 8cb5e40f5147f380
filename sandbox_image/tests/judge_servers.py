"""A real judge for tests and benchmarks: the server as a process of its own, and clients that obey what it says.

A client is as patient as the trainer's: it comes back when it is told to, asks again when a connection breaks, and
takes `error` for no verdict. It gives up at its deadline, so that what never ends fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

import aiohttp

from deepcoder_contracts.judge import RUN_HEADER

TOKEN = "a-token-for-these-servers-only"
COMMAND = [sys.executable, "-m", "deepcoder_sandbox"]
START_S = 60.0


class Server:
    """`deepcoder-sandbox serve`, on a Unix socket or, with a port, on TCP; started again it is at the same address."""

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        self._socket = folder / "judge.sock"
        self._port = port
        token = folder / "token"
        token.write_text(TOKEN)
        where = ["--socket", str(self._socket)] if port is None else ["--host", "127.0.0.1", "--port", str(port)]
        self._command = [*COMMAND, "serve", *where, "--token-file", str(token), *options]
        self.base_url = "http://judge" if port is None else f"http://127.0.0.1:{port}"
        self.log: deque[str] = deque(maxlen=2000)
        self._restart = threading.Lock()
        self._over = False
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        listening = threading.Event()
        self._reader = threading.Thread(target=self._follow, args=(process, listening), daemon=True)
        self._reader.start()
        until = time.monotonic() + START_S
        while process.poll() is None and time.monotonic() < until:
            if listening.wait(0.1):
                break
        else:
            process.kill()
            raise AssertionError(f"the server does not listen: {list(self.log)[-3:]}")
        return process

    def _follow(self, process: subprocess.Popen[str], listening: threading.Event) -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                self.log.append(line)
                if "listening" in line:
                    listening.set()

    def connector(self) -> aiohttp.BaseConnector:
        """What an HTTP client needs to reach it."""
        if self._port is None:
            return aiohttp.UnixConnector(str(self._socket), limit=0)
        return aiohttp.TCPConnector(limit=0)

    def session(self, run: str = "") -> aiohttp.ClientSession:
        """A client that shows the token, of a run if one is named."""
        return aiohttp.ClientSession(
            self.base_url,
            connector=self.connector(),
            headers={"Authorization": f"Bearer {TOKEN}"} | ({RUN_HEADER: run} if run else {}),
            timeout=aiohttp.ClientTimeout(total=None),
        )

    def kill_and_restart(self) -> None:
        """End it as the kernel would, and start it again, unless the test is over: nobody would end that one."""
        with self._restart:
            if not self._over:
                self._kill()
                self.process = self._start()

    def stop(self, within_s: float = 60.0) -> int:
        """Ask it to leave; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

    def zygotes(self) -> list[int]:
        """The processes that it has started."""
        return children(self.process.pid)

    def memory_mb(self, what: str = "VmRSS") -> float:
        """Memory of the server's own process: now, or with VmHWM the most so far."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{what}:"):
                return int(line.split()[1]) / 1024
        raise AssertionError(f"the kernel does not tell {what}")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        with self._restart:
            self._over = True
            self._kill()

    def _kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(START_S)  # its pipe would still count among the descriptors of whoever looks next


def children(pid: int) -> list[int]:
    """Processes that any thread of `pid` has started."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    """Processes below `pid`, the nearest first."""
    found = children(pid)
    for each in found:
        found += children(each)
    return found


def kill(pid: int) -> None:
    """End a process, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class PatientClients:
    """Has submissions judged, each until it has a verdict; counts what came between."""

    def __init__(self, server: Server, deadline_s: float, run: str = "") -> None:
        self._server, self._run = server, run
        self._until = time.monotonic() + deadline_s
        self.met: Counter[str] = Counter()
        """429, 503, lost, error: answers that are no verdict; verdicts."""

    async def judge_all(
        self, bodies: list[dict[str, Any]], at_once: int | None = None, *, as_it_is: bool = False
    ) -> list[dict[str, Any]]:
        """Send all at once, or so many; return the answers in order. `as_it_is`: text in UTF-8, not escaped."""
        gate = asyncio.Semaphore(at_once or len(bodies))
        async with self._server.session(self._run) as session:

            async def judge(body: dict[str, Any]) -> dict[str, Any]:
                async with gate:
                    return await self.judge(session, body, as_it_is)

            return await asyncio.gather(*(judge(body) for body in bodies))

    async def judge(
        self, session: aiohttp.ClientSession, body: dict[str, Any], as_it_is: bool = False
    ) -> dict[str, Any]:
        """Send one until it has a verdict."""
        data = json.dumps(body, ensure_ascii=not as_it_is).encode()
        while time.monotonic() < self._until:
            try:
                async with session.post("/v1/judge", data=data) as response:
                    answer = await response.json()
                    status, rest_s = response.status, float(response.headers.get("Retry-After", "0"))
            except (aiohttp.ClientError, OSError):
                self.met["lost"] += 1
                await asyncio.sleep(0.1)
                continue
            if status in (429, 503):
                self.met[str(status)] += 1
                await asyncio.sleep(rest_s)
                continue
            assert status == 200, answer
            assert answer["id"] == body["id"]
            if answer["passed"] is not None:
                self.met["verdicts"] += 1
                return answer
            self.met["error"] += 1
            await asyncio.sleep(0.05)
        raise AssertionError(f"{body['id']} has no verdict at the deadline; met so far: {dict(self.met)}")


def submission(name: str, code: str, *tests: tuple[str, str], **fields: Any) -> dict[str, Any]:
    """A request's body."""
    cases = [{"input": given, "output": expected} for given, expected in tests or [("", "")]]
    return {"id": name, "code": code, "tests": cases, **fields}


async def metric(session: aiohttp.ClientSession, name: str) -> float:
    """The sum over all labels of a metric."""
    async with session.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)
