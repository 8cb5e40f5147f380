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
    " from deepcoder_sandbox.worker import large_heap; large_heap.reserve();"
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
"""The whole environment of a zygote, and so of every program.

LD_BIND_NOW: no fork has to resolve again, and dirty tables for, what the linker resolves at the zygote's start.
MALLOC_ARENA_MAX: one arena per thread would be 64 MiB of address space each, which counts towards the memory limit.
"""


class ZygoteFailed(Exception):
    """The judge's own failure: no run was completed."""


class InForce(NamedTuple):
    """What a zygote put in force, as far as the kernel may offer less at another time."""

    tier: str
    landlock_abi: int
    """0 in the unconfined tier."""
    thread_gate: bool
    """Whether the kernel asks the zygote before each thread of a program. If not, it counts all threads of the user."""

    def shortfall(self, wanted: InForce) -> str:
        """Return in words what is weaker than in `wanted`; empty if nothing is."""
        less = {
            "tier": self.tier != wanted.tier,
            "landlock_abi": self.landlock_abi < wanted.landlock_abi,
            "thread_gate": self.thread_gate < wanted.thread_gate,
        }
        return ", ".join(
            f"{name} is {getattr(self, name)} and not {getattr(wanted, name)}" for name in less if less[name]
        )


class Started(NamedTuple):
    """What a session's runner reports before it loads its program, and its pid from the kernel."""

    pid: int
    cpu_s: float
    """CPU seconds used so far, to confine it."""
    at: float
    """Time of the report (monotonic)."""


@dataclass(frozen=True)
class ZygoteConfig:
    """How zygotes are confined."""

    tier: Tier = Tier.LANDLOCK
    """Tier to enter; starting fails if that is not possible."""

    packages: tuple[str, ...] = ()
    """Directories of extra packages that programs may import (see `package_directories`)."""

    preload: tuple[str, ...] = ()
    """Modules of these packages to load once per zygote."""

    harness: bool = False
    """Whether it runs programs as LiveCodeBench's harness does, and no others."""

    at_least: InForce | None = None
    """What must be in force: what the attacked zygotes had. Starting fails with less."""


def package_directories(given: Iterable[str]) -> tuple[str, ...]:
    """Return absolute paths, because zygotes have another working directory.

    Raises ValueError for a missing directory, because every program that imports from it would fail.
    """
    directories = tuple(map(os.path.abspath, given))
    if missing := [path for path in directories if not Path(path).is_dir()]:
        raise ValueError(f"packages: {missing[0]} is not a directory: name one that programs may import from")
    return directories


class ZygoteProcess:
    """One running zygote."""

    def __init__(self, config: ZygoteConfig) -> None:
        """Start the zygote and wait until it is confined. Raises ZygoteFailed with its reason."""
        self.config = config
        self.runs = 0
        self.run_wall_s = 0.0
        """Seconds of all runs, from requesting each to learning of its end."""
        self._asked_at = 0.0
        self.spent = False
        """Whether something was left behind that cannot be removed. If so, request no other run."""
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
        """Pid of the started process (with namespaces, the zygote itself is its child)."""
        return self._process.pid

    def start_run(self, job: packets.Job, descriptors: list[int]) -> None:
        """Request a run; `descriptors` become the runner's 0, 1, 2, …. Raises ZygoteFailed."""
        self.runs += 1
        self._asked_at = time.monotonic()
        try:
            socket.send_fds(self._channel, [packets.encode_job(job)], descriptors)
        except OSError as error:
            raise ZygoteFailed(f"the zygote is gone: {error}") from error

    def started(self) -> Started | None:
        """Return the current session's report of its start; None if there is none yet. Raises ZygoteFailed."""
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
        """Wait until `deadline` (monotonic) for the run to end, and return how it ended. Raises ZygoteFailed."""
        packet = packets.STARTED
        while packet.startswith(packets.STARTED):  # which nobody has read
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
        """Have the zygote send SIGALRM to the current run."""
        self._tell(packets.RING)

    def cancel_run(self) -> None:
        """Have the zygote end the current run; `finish_run` still returns how."""
        self._tell(packets.CANCEL)

    def tell_hung_up(self) -> None:
        """Tell the zygote that the current session is about to end, because one side has hung up."""
        self._tell(packets.HUNG_UP)

    def _tell(self, packet: bytes) -> None:
        try:
            self._channel.send(packet)
        except OSError as error:
            raise ZygoteFailed(f"the zygote is gone: {error}") from error

    def has_taken_all(self) -> bool:
        """Return whether the zygote has received everything that was sent to it. Raises ZygoteFailed."""
        try:
            unread = fcntl.ioctl(self._channel, termios.TIOCOUTQ, bytes(_COUNT.size))
        except OSError as error:
            raise ZygoteFailed(f"the zygote is gone: {error}") from error
        return _COUNT.unpack(unread) == (0,)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when a run, or the zygote, has ended."""
        return self._channel.fileno()

    def _configure(self, deadline: float) -> InForce:
        """Exchange the first packets, both JSON; return what the zygote put in force. Raises ZygoteFailed."""
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
            self.most_memory_mb = int(answer["most_memory_mb"])
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
        """Hang up, on which the zygote ends by itself; kill it if it does not."""
        self._channel.close()
        try:
            self._process.wait(_END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill the zygote, and with it whatever it runs."""
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # uninterruptible in the kernel: reaped later
            self._process.wait(_END_DEADLINE_S)


def _interpreter() -> str:
    """Return the plain interpreter behind a virtual environment, because zygotes have no site packages."""
    return str(getattr(sys, "_base_executable", None) or sys.executable)
