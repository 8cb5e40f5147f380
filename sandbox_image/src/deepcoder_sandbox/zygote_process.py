"""The judge's end of one zygote: starting it, asking it for runs, ending it.

Every exchange has a deadline. A zygote that dies, hangs, or answers what is no answer raises `ZygoteFailed`: the caller
starts another and decides whether to try again. Nothing that a program does is an exception here.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from deepcoder_contracts.judge import Tier
from deepcoder_sandbox.limits import RunLimits
from deepcoder_sandbox.worker.boot import package_root

_START_DEADLINE_S = 60.0
_END_DEADLINE_S = 5.0
_PACKET_BYTES = 1 << 16
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[2]);"
    " from deepcoder_sandbox.worker.boot import main; main(int(sys.argv[1]), sys.argv[2])"
)
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class ZygoteFailed(Exception):
    """The judge's own failure: no run was completed."""


@dataclass(frozen=True)
class ZygoteConfig:
    """How zygotes are confined."""

    tier: Tier = Tier.LANDLOCK
    """Tier to enter; starting fails where it cannot be."""

    packages: tuple[str, ...] = ()
    """Directories of extra packages that programs may import."""

    preload: tuple[str, ...] = ()
    """Modules of those packages to load once a zygote."""


@dataclass(frozen=True)
class RunEnded:
    """How a run ended, as the zygote, which the program cannot reach, saw it."""

    wait_status: int
    cpu_s: float
    wall_s: float
    starved_s: float
    """Seconds of those that it waited for a processor; not told of short runs."""

    max_rss_kb: int
    killed_for: str | None
    """cpu, wall or cancelled, where the zygote ended it."""

    clean: bool
    """Whether nothing was left behind; if not, the zygote is to be replaced."""

    @property
    def signal(self) -> int | None:
        """The signal it died of."""
        return os.WTERMSIG(self.wait_status) if os.WIFSIGNALED(self.wait_status) else None

    @property
    def exit_status(self) -> int | None:
        """Its exit status, if it left by itself."""
        return os.WEXITSTATUS(self.wait_status) if os.WIFEXITED(self.wait_status) else None


class ZygoteProcess:
    """One running zygote."""

    def __init__(self, config: ZygoteConfig) -> None:
        """Start it and wait until it is confined. Raises ZygoteFailed with its reason."""
        self.config = config
        self.runs = 0
        self.spent = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = subprocess.Popen(
                [_interpreter(), "-s", "-S", "-P", "-B", "-c", _BOOT, str(theirs.fileno()), package_root()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_ENVIRONMENT,
                cwd="/",
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise ZygoteFailed(f"cannot start a zygote: {error}") from error
        finally:
            theirs.close()
        self._channel = ours
        try:
            answer = self._exchange(
                {
                    "tier": config.tier,
                    "packages": list(config.packages),
                    "preload": list(config.preload),
                },
                [],
                time.monotonic() + _START_DEADLINE_S,
            )
            if "error" in answer:
                raise ZygoteFailed(str(answer["error"]))
        except BaseException:
            self.kill()
            raise
        self.landlock_abi = int(answer["landlock_abi"])

    @property
    def pid(self) -> int:
        """The process that was started (inside namespaces the zygote itself is its child)."""
        return self._process.pid

    def start_run(self, job: dict[str, Any], limits: RunLimits, descriptors: list[int]) -> None:
        """Ask for a run; `descriptors` become the runner's 0, 1, 2, …."""
        self.runs += 1
        try:
            packet = json.dumps({**job, **vars(limits)}).encode()
            socket.send_fds(self._channel, [packet], descriptors)
        except OSError as error:
            raise ZygoteFailed(f"the zygote is gone: {error}") from error

    def finish_run(self, deadline: float) -> RunEnded:
        """Wait until `deadline` (monotonic) for the run to end."""
        answer = self._receive(deadline)
        if "error" in answer:
            raise ZygoteFailed(str(answer["error"]))
        ended = RunEnded(**answer)
        self.spent = self.spent or not ended.clean
        return ended

    def ring_alarm(self) -> None:
        """Have SIGALRM sent to the run that is under way."""
        self._tell("ring")

    def cancel_run(self) -> None:
        """Have the run that is under way ended; `finish_run` still tells how."""
        self._tell("cancel")

    def _tell(self, mode: str) -> None:
        try:
            self._channel.send(json.dumps({"mode": mode}).encode())
        except OSError as error:
            raise ZygoteFailed(f"the zygote is gone: {error}") from error

    def fileno(self) -> int:
        """Readable when a run has ended, or the zygote has."""
        return self._channel.fileno()

    def _exchange(self, message: dict[str, Any], descriptors: list[int], deadline: float) -> dict[str, Any]:
        try:
            socket.send_fds(self._channel, [json.dumps(message).encode()], descriptors)
        except OSError as error:
            raise ZygoteFailed(f"the zygote is gone: {error}") from error
        return self._receive(deadline)

    def _receive(self, deadline: float) -> dict[str, Any]:
        poller = select.poll()
        poller.register(self._channel, select.POLLIN)
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise ZygoteFailed("the zygote did not answer before the deadline")
        try:
            packet = self._channel.recv(_PACKET_BYTES)
            answer = json.loads(packet) if packet else {"error": "the zygote is gone"}
        except (OSError, ValueError) as error:
            raise ZygoteFailed(f"the zygote's answer is broken: {error}") from error
        return dict(answer)

    def close(self) -> None:
        """Let it end by itself, which it does when its judge hangs up; end it if it does not."""
        self._channel.close()
        try:
            self._process.wait(_END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it, and with it whatever it runs."""
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()


def _interpreter() -> str:
    """The plain interpreter behind a virtual environment: zygotes have no site packages."""
    return str(getattr(sys, "_base_executable", None) or sys.executable)
