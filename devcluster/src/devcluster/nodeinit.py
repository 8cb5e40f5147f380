"""Process 1 of the node: makes the node's private view of the machine, starts its components, keeps them running.

`python -m devcluster.nodeinit RECORD CGROUP SPEC` joins the cgroup, leaves the machine's mount, process, network, host
name and IPC namespaces, and becomes the first process of new ones. All mounts, links and processes of the cluster are
in these namespaces, so the kernel removes them with this process, however it ends. Only the cgroup, a few settings and
files have to be cleaned up separately.

A component that ends is restarted, as by an init system, unless it ended five times in a minute: then it stays down and
the status file says so. One that cannot be started counts as one that ends. A full disk delays the status file. Fails,
with the reason in the status file, if the node's view cannot be made.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from devcluster import cgroups, procfs

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWPID, _CLONE_NEWNET = (
    0x00020000, 0x04000000, 0x08000000, 0x20000000, 0x40000000,
)  # fmt: skip
_MS_BIND, _MS_REC, _MS_SLAVE, _MS_SHARED = 0x1000, 0x4000, 0x80000, 0x100000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
_ENDS_TOLERATED, _WITHIN_SECONDS = 5, 60.0
_COMMAND_SECONDS = 20.0
_LOGS = Path("/var/log")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Running:
    """State of one component, as the status file shows it; `pid` is the one inside the node."""

    name: str
    pid: int = 0
    restarts: int = 0
    gave_up: bool = False
    last_exit: str = ""
    ends: list[float] = field(default_factory=list)


def main(arguments: list[str]) -> int:
    """Enter new namespaces and stay there until killed; the parent records the child's identity and leaves."""
    record, cgroup, spec_file = Path(arguments[0]), arguments[1], Path(arguments[2])
    cgroups.join(cgroup)
    flags = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNET
    _check(_libc.unshare(flags), "unshare")
    go_read, go_write = os.pipe()
    child = os.fork()
    if child:
        os.close(go_read)
        identity = procfs.ProcessId.of(child)
        assert identity is not None
        procfs.save(record, identity)
        os.write(go_write, b"!")  # only now that the record is on disk: a crash must not leave an unrecorded node
        return 0
    os.close(go_write)
    if os.read(go_read, 1) != b"!":
        return 1
    os.close(go_read)
    os.setsid()
    return _Node(json.loads(spec_file.read_text())).run()


class _Node:
    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._status_file = Path(spec["status_file"])
        self._running = [Running(component["name"]) for component in spec["components"]]
        self._commands = {component["name"]: component for component in spec["components"]}
        self._waiting_for_api = True
        self._written = ""

    def run(self) -> int:
        try:
            self._make_view()
        except (OSError, subprocess.SubprocessError) as reason:
            self._write_status(error=f"{reason}")
            return 1
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
        while True:
            self._start_due()
            with suppress(OSError):  # a full disk: tried again as long as what was written differs
                self._write_status()
            received = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, 0.1 if self._waiting_for_api else 1.0)
            if received is not None and received.si_signo == signal.SIGTERM:
                return 0
            self._reap()
            if self._waiting_for_api and self._api_is_ready():
                self._waiting_for_api = False

    def _make_view(self) -> None:
        spec = self._spec
        _mount("none", "/", "", _MS_REC | _MS_SLAVE)  # mounts made here are not visible outside
        _mount("none", "/", "", _MS_REC | _MS_SHARED)  # pods see mounts of the kubelet
        _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
        target, lower = spec["library_overlay"]
        _mount("overlay", target, "overlay", _MS_RDONLY, f"lowerdir={lower}")
        for source, target in spec["binds"]:
            Path(target).mkdir(parents=True, exist_ok=True)
            _mount(source, target, "", _MS_BIND | _MS_REC)
        for target in spec["tmpfs"]:
            _mount("tmpfs", target, "tmpfs", _MS_NOSUID | _MS_NODEV)
        socket.sethostname(spec["hostname"])
        for command in spec["network"]:
            subprocess.run(command, check=True, timeout=_COMMAND_SECONDS)
        for name, value in spec["network_sysctls"].items():
            (Path("/proc/sys") / name).write_text(value)

    def _start_due(self) -> None:
        for state in self._running:
            component = self._commands[state.name]
            if state.pid or state.gave_up or (component["needs_api"] and self._waiting_for_api):
                continue
            try:
                state.pid = self._start(component)
            except (OSError, subprocess.SubprocessError) as reason:
                self._ended(state, f"not started: {reason}")

    @staticmethod
    def _start(component: dict[str, Any]) -> int:
        with (_LOGS / f"{component['name']}.log").open("ab") as log:
            process = subprocess.Popen(
                component["command"],
                env={**os.environ, **component["environment"]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,
                preexec_fn=_unblock_signals,
            )
        process.returncode = 0  # reaped below together with orphans, not by Popen
        return process.pid

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for state in self._running:
                if state.pid == pid:
                    code = os.waitstatus_to_exitcode(status)
                    self._ended(state, f"signal {-code}" if code < 0 else f"exit code {code}")

    @staticmethod
    def _ended(state: Running, how: str) -> None:
        now = time.monotonic()
        state.pid = 0
        state.last_exit = how
        state.ends = [moment for moment in state.ends if now - moment < _WITHIN_SECONDS] + [now]
        state.restarts += 1
        state.gave_up = len(state.ends) >= _ENDS_TOLERATED

    def _api_is_ready(self) -> bool:
        context = ssl.create_default_context(cafile=self._spec["api_ca"])
        try:
            with urllib.request.urlopen(self._spec["api_ready"], timeout=2, context=context) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _write_status(self, error: str = "") -> None:
        content = json.dumps(
            {
                "error": error,
                "api_was_ready": not self._waiting_for_api,
                "components": [asdict(state) for state in self._running],
            }
        )
        if self._written == content:
            return
        making = self._status_file.with_suffix(".new")
        making.write_text(content)
        making.rename(self._status_file)
        self._written = content


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None
    )
    _check(result, f"mount {source} at {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
