"""The judge's side of one zygote: starts it, requests runs, ends it.

Every exchange has a deadline. If a zygote dies, hangs, or gives an invalid answer, `ZygoteFailed` is raised: the caller
starts another zygote and decides whether to retry. Nothing that a program does raises an exception here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from deepcoder_contracts.judge import Tier
from deepcoder_sandbox.worker import namespaces, packets
from deepcoder_sandbox.worker.boot import package_root

_START_DEADLINE_S = 60.0
_END_DEADLINE_S = 5.0
_PACKET_BYTES = 1 << 16
_COUNT = struct.Struct("i")
_CREDENTIALS = struct.Struct("iII")
_CREDENTIALS_BYTES = socket.CMSG_SPACE(_CREDENTIALS.size)
_HOST_USERS: Final = namespaces.HOST_USERS.start + secrets.randbelow(
    len(namespaces.HOST_USERS) - namespaces.HOST_USERS_OF_A_JUDGE
)
_BOOT = (
    "import os, sys; os.register_at_fork = lambda **hooks: None; sys.path.insert(0, sys.argv[2]);"
    " from deepcoder_sandbox.worker.boot import main; main(int(sys.argv[1]), sys.argv[2])"
)
ENVIRONMENT: Final = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "LD_BIND_NOW": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}
"""All that a zygote, and with it every program, has for an environment.

LD_BIND_NOW: what the linker resolves at its start no fork has to resolve, and dirty its tables for, again.
MALLOC_ARENA_MAX: an arena a thread is 64 MiB of address space, which counts for the memory limit.
"""


class ZygoteFailed(Exception):
    """The judge's own failure: no run was completed."""


class InForce(NamedTuple):
    """What a zygote put in force where the kernel may have less to offer at another time."""

    tier: str
    landlock_abi: int
    """0 in the unconfined tier."""
    thread_gate: bool
    """Whether it is asked for each thread of a program. Where it is not, the kernel counts its user's."""

    def shortfall(self, wanted: InForce) -> str:
        """Return what is less than in `wanted`; empty where nothing is."""
        less = {
            "tier": self.tier != wanted.tier,
            "landlock_abi": self.landlock_abi < wanted.landlock_abi,
            "thread_gate": self.thread_gate < wanted.thread_gate,
        }
        return ", ".join(
            f"{name} is {getattr(self, name)} and not {getattr(wanted, name)}" for name in less if less[name]
        )


class Started(NamedTuple):
    """What a session's runner tells before its program is loaded, and the kernel of it."""

    pid: int
    cpu_s: float
    """What it has used so far: confining it."""
    at: float
    """When (monotonic)."""


@dataclass(frozen=True)
class ZygoteConfig:
    """How zygotes are confined."""

    tier: Tier = Tier.LANDLOCK
    """Tier to enter; starting fails where it cannot be."""

    packages: tuple[str, ...] = ()
    """Directories of extra packages that programs may import (see `package_directories`)."""

    preload: tuple[str, ...] = ()
    """Modules of those packages to load once a zygote."""

    harness: bool = False
    """Whether it runs programs as LiveCodeBench's harness does, for which it is prepared once, and no others."""

    at_least: InForce | None = None
    """What has to be in force: what the attacked ones had. Starting fails with less."""


def package_directories(given: Iterable[str]) -> tuple[str, ...]:
    """Return them as zygotes are told them, who stand in another directory.

    Raises ValueError for one that is not there: each program that imports from it would be wrong.
    """
    directories = tuple(map(os.path.abspath, given))
    if missing := [path for path in directories if not Path(path).is_dir()]:
        raise ValueError(f"packages: {missing[0]} is not a directory: name one that programs may import from")
    return directories


class ZygoteProcess:
    """One running zygote."""

    def __init__(self, config: ZygoteConfig) -> None:
        """Start it and wait until it is confined. Raises ZygoteFailed with its reason."""
        self.config = config
        self.runs = 0
        self.run_wall_s = 0.0
        """Seconds of all runs, from asking for each to hearing of its end."""
        self._asked_at = 0.0
        self.spent = False
        """Whether something was left behind that cannot be removed: not to be asked for another run."""
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise ZygoteFailed(f"cannot start a zygote: {error}") from error
        try:
            self._process = subprocess.Popen(
                [_interpreter(), "-s", "-S", "-P", "-B", "-c", _BOOT, str(theirs.fileno()), package_root()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=ENVIRONMENT,
                cwd="/",
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise ZygoteFailed(f"cannot start a zygote: {error}") from error
        finally:
            theirs.close()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._channel = ours
        self._poller = select.poll()
        self._poller.register(ours, select.POLLIN)
        try:
            self.in_force = self._configure(time.monotonic() + _START_DEADLINE_S)
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """The process that was started (inside namespaces the zygote itself is its child)."""
        return self._process.pid

    def start_run(self, job: packets.Job, descriptors: list[int]) -> None:
        """Ask for a run; `descriptors` become the runner's 0, 1, 2, …."""
        self.runs += 1
        self._asked_at = time.monotonic()
        try:
            socket.send_fds(self._channel, [packets.encode_job(job)], descriptors)
        except OSError as error:
            raise ZygoteFailed(f"the zygote is gone: {error}") from error

    def started(self) -> Started | None:
        """Return what the session under way made itself known by; None where it has not yet. Raises ZygoteFailed."""
        try:
            packet, ancillary, _, _ = self._channel.recvmsg(_PACKET_BYTES, _CREDENTIALS_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise ZygoteFailed(f"the zygote is gone: {error}") from error
        self._raise_error(packet)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                pid: int = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0]
                if pid > 0 and packet.startswith(packets.STARTED):
                    return Started(pid, *packets.decode_started(packet))
        raise ZygoteFailed("the kernel did not say which process is the runner")

    def _raise_error(self, packet: bytes) -> None:
        if not packet:
            raise ZygoteFailed("the zygote is gone")
        if packet.startswith(packets.ERROR):
            raise ZygoteFailed(packet[len(packets.ERROR) :].decode(errors="replace"))

    def finish_run(self, deadline: float) -> packets.RunEnded:
        """Wait until `deadline` (monotonic) for the run to end."""
        packet = packets.STARTED
        while packet.startswith(packets.STARTED):  # which nobody asked for
            packet = self._receive(deadline)
        self._raise_error(packet)
        try:
            ended = packets.decode_ended(packet)
        except ValueError as error:
            raise ZygoteFailed(f"the zygote's answer is broken: {error}") from error
        self.run_wall_s += time.monotonic() - self._asked_at
        self.spent = self.spent or not ended.clean
        return ended

    def ring_alarm(self) -> None:
        """Have SIGALRM sent to the run that is under way."""
        self._tell(packets.RING)

    def cancel_run(self) -> None:
        """Have the run that is under way ended; `finish_run` still tells how."""
        self._tell(packets.CANCEL)

    def tell_hung_up(self) -> None:
        """Say that the session under way must be near its end, since one side has hung up."""
        self._tell(packets.HUNG_UP)

    def _tell(self, packet: bytes) -> None:
        try:
            self._channel.send(packet)
        except OSError as error:
            raise ZygoteFailed(f"the zygote is gone: {error}") from error

    def has_taken_all(self) -> bool:
        """Whether the zygote has received all that it was sent. Raises ZygoteFailed."""
        try:
            unread = fcntl.ioctl(self._channel, termios.TIOCOUTQ, bytes(_COUNT.size))
        except OSError as error:
            raise ZygoteFailed(f"the zygote is gone: {error}") from error
        return _COUNT.unpack(unread) == (0,)

    def fileno(self) -> int:
        """Readable when a run has ended, or the zygote has."""
        return self._channel.fileno()

    def _configure(self, deadline: float) -> InForce:
        """Exchange the first packets, both JSON; return what the zygote put in force, which is as much as is wanted."""
        config = self.config
        packet = {
            "tier": config.tier,
            "packages": list(config.packages),
            "preload": list(config.preload),
            "harness": config.harness,
            "host_users": _HOST_USERS,
        }
        try:
            self._channel.send(json.dumps(packet).encode())
            answer: dict[str, Any] = dict(json.loads(self._receive(deadline)))

            if "error" in answer:
                raise ZygoteFailed(str(answer["error"]))
            in_force = InForce(str(answer["tier"]), int(answer["landlock_abi"]), bool(answer["thread_gate"]))
        except OSError as error:
            raise ZygoteFailed(f"the zygote is gone: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise ZygoteFailed(f"the zygote's answer is broken: {error}") from error
        if shortfall := in_force.shortfall(config.at_least or in_force):
            raise ZygoteFailed(f"confined by less than the zygotes that were attacked: {shortfall}")
        return in_force

    def _receive(self, deadline: float) -> bytes:
        if not self._poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise ZygoteFailed("the zygote did not answer before the deadline")
        try:
            packet = self._channel.recv(_PACKET_BYTES)
        except OSError as error:
            raise ZygoteFailed(f"the zygote is gone: {error}") from error
        if not packet:
            raise ZygoteFailed("the zygote is gone")
        return packet

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
        with contextlib.suppress(subprocess.TimeoutExpired):  # in the kernel, uninterruptible: reaped when it can be
            self._process.wait(_END_DEADLINE_S)


def _interpreter() -> str:
    """The plain interpreter behind a virtual environment: zygotes have no site packages."""
    return str(getattr(sys, "_base_executable", None) or sys.executable)
