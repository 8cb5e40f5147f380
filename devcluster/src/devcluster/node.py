"""The node as seen from the machine: start it, inspect it, run programs inside it, stop it.

Fails with NodeError, which shows the last output of the node's process 1 or of a component.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from devcluster import procfs
from devcluster.config import Cluster

_START_SECONDS = 20.0


class NodeError(RuntimeError):
    """The node, or a part of it, is not running."""


@dataclass(frozen=True)
class ComponentState:
    """A component as seen from the machine; `pid` is 0 if it is not running."""

    name: str
    pid: int
    restarts: int
    gave_up: bool
    last_exit: str
    resident_bytes: int


def running(cluster: Cluster) -> procfs.ProcessId | None:
    """Process 1 of the node, if it is alive."""
    process = procfs.load(cluster.node_record)
    return process if process is not None and process.alive() else None


def start(cluster: Cluster) -> procfs.ProcessId:
    """Start process 1 of the node, which starts everything else, and return once it is recorded."""
    cluster.logs.mkdir(parents=True, exist_ok=True)
    cluster.node_record.unlink(missing_ok=True)
    log_file = cluster.logs / "node.log"
    command = [sys.executable, "-m", "devcluster.nodeinit", str(cluster.node_record), cluster.cgroup]
    command.append(str(cluster.node_spec))
    try:
        with log_file.open("ab") as log:
            launched = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
                env=_environment(os.environ),
                timeout=_START_SECONDS,
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise NodeError(f"the node did not start within {_START_SECONDS:.0f} s: {tail(log_file, 5)}") from None
    process = procfs.load(cluster.node_record)
    if launched.returncode != 0 or process is None:
        raise NodeError(f"the node did not start: {tail(log_file, 5)}")
    return process


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without proxies: the node has no way out, and no proxy reaches its pods and Services.

    Also without TMPDIR. The directory may be of whoever starts the node, and be removed long before it ends.
    """
    return {
        name: value for name, value in environment.items() if name != "TMPDIR" and not name.lower().endswith("_proxy")
    }


def components(cluster: Cluster) -> list[ComponentState]:
    """State of each component, from what process 1 wrote and which processes exist."""
    process = running(cluster)
    status = _status(cluster)
    if process is None or status is None:
        return []
    if status["error"]:
        raise NodeError(f"the node could not be set up: {status['error']}")
    outside = {_inner_pid(pid): pid for pid in procfs.children(process.pid)}
    found = []
    for entry in status["components"]:
        pid = outside.get(entry["pid"], 0) if entry["pid"] else 0
        found.append(
            ComponentState(
                entry["name"], pid, entry["restarts"], entry["gave_up"], entry["last_exit"], procfs.resident_bytes(pid)
            )
        )
    return found


def api_was_ready(cluster: Cluster) -> bool:
    """Whether process 1 has seen the API server ready."""
    status = _status(cluster)
    return bool(status and status["api_was_ready"])


def require_alive(cluster: Cluster) -> procfs.ProcessId:
    """Process 1 of the node; raises NodeError with the last output of what failed."""
    process = running(cluster)
    if process is None:
        status = _status(cluster)
        said = (status or {}).get("error") or tail(cluster.logs / "node.log", 5)
        raise NodeError(f"the node is not running: {said}")
    for component in components(cluster):
        if component.gave_up:
            log = cluster.logs / f"{component.name}.log"
            raise NodeError(f"{component.name} keeps ending ({component.last_exit}), see {log}:\n{tail(log, 8)}")
    return process


def inside(process: procfs.ProcessId, command: Sequence[str | Path]) -> list[str]:
    """A command line that runs `command` inside the node's namespaces."""
    return [
        "nsenter",
        f"--target={process.pid}",
        "--mount",
        "--pid",
        "--net",
        "--uts",
        "--ipc",
        "--",
        *map(str, command),
    ]


def run_inside(
    process: procfs.ProcessId, command: Sequence[str | Path], deadline: float, stdin: IO[bytes] | None = None
) -> str:
    """Run `command` inside the node and return its output; raises NodeError with the output if it fails."""
    try:
        done = subprocess.run(
            inside(process, command),
            stdin=stdin or subprocess.DEVNULL,
            capture_output=True,
            timeout=deadline,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NodeError(f"{command[0]}: not done after {deadline:.0f} s: {' '.join(map(str, command))}") from None
    if done.returncode != 0:
        said = (done.stderr + done.stdout).decode(errors="replace").strip()
        raise NodeError(f"{' '.join(map(str, command))}: exit code {done.returncode}: {said[-2000:]}")
    return done.stdout.decode(errors="replace")


def wait_for_api(cluster: Cluster, seconds: float) -> None:
    """Wait until process 1 has seen the API server ready."""
    deadline = time.monotonic() + seconds
    while not api_was_ready(cluster):
        require_alive(cluster)
        if time.monotonic() > deadline:
            log = cluster.logs / "kube-apiserver.log"
            raise NodeError(f"the API server is not ready after {seconds:.0f} s, see {log}:\n{tail(log, 8)}")
        time.sleep(0.05)


def tail(path: Path, lines: int) -> str:
    """The last lines of a log, or the reason why there are none."""
    try:
        content = path.read_text(errors="replace").strip().splitlines()
    except FileNotFoundError:
        return f"{path} does not exist"
    return "\n".join(content[-lines:]) if content else f"{path} is empty"


def _status(cluster: Cluster) -> dict[str, Any] | None:
    try:
        status: dict[str, Any] = json.loads(cluster.node_status.read_text())
    except FileNotFoundError:
        return None
    return status


def _inner_pid(pid: int) -> int:
    """Pid of a process inside its innermost namespace."""
    try:
        lines = (procfs.PROC / str(pid) / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[-1]) for line in lines if line.startswith("NSpid:")), 0)
