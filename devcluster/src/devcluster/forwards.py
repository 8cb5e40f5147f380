"""Loopback forwards of one cluster: start, list and stop the processes of `forwarder`.

A forward is recorded under `forwards/` of the cluster's state and ends with the cluster. Starting one that already
serves the same target returns it. Fails with the forwarder's message if its port is taken.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from devcluster import node, procfs
from devcluster.config import Cluster, ConfigError
from devcluster.kubectl import Kube

_START_SECONDS = 15.0
_TARGET = re.compile(r"(?P<namespace>[a-z0-9-]+)/(?P<service>[a-z0-9-]+):(?P<port>\d+)")


@dataclass(frozen=True)
class Forward:
    """127.0.0.1:`port` of the machine leads to `host`:`target_port` inside the cluster."""

    name: str
    port: int
    host: str
    target_port: int
    process: procfs.ProcessId


def existing(cluster: Cluster) -> list[Forward]:
    """The running forwards."""
    found = []
    for record in sorted(cluster.forwards.glob("*.json")):
        process = procfs.load(record)
        if process is not None and process.alive():
            content = json.loads(record.read_text())
            found.append(Forward(record.stem, content["listen_port"], content["host"], content["port"], process))
    return found


def find(cluster: Cluster, name: str) -> Forward | None:
    """The forward of that name, if it is running."""
    return next((forward for forward in existing(cluster) if forward.name == name), None)


def start(cluster: Cluster, node_pid: int, name: str, host: str, target_port: int, port: int = 0) -> Forward:
    """Forward 127.0.0.1:`port` (0: any free one) to `host`:`target_port`; one forward for each `name`."""
    if (running := find(cluster, name)) is not None:
        if (running.host, running.target_port) == (host, target_port) and port in (0, running.port):
            return running
        running.process.kill()
    record = cluster.forwards / f"{name}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    cluster.logs.mkdir(parents=True, exist_ok=True)
    log_file = cluster.logs / f"forward-{name}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "devcluster.forwarder",
                str(record),
                cluster.cgroup,
                str(port),
                str(node_pid),
                host,
                str(target_port),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
        )
    deadline = time.monotonic() + _START_SECONDS
    while not record.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"forward {name} to {host}:{target_port} did not start: {_last_line(log_file)}")
        time.sleep(0.02)
    process.returncode = 0  # it is meant to outlive this process
    started = find(cluster, name)
    if started is None:
        raise RuntimeError(f"forward {name} to {host}:{target_port} ended at once: {_last_line(log_file)}")
    return started


def to_service(cluster: Cluster, kube: Kube, target: str, port: int = 0) -> Forward:
    """Forward to `target`, NAMESPACE/SERVICE:PORT, at the Service's current address."""
    match = _TARGET.fullmatch(target)
    if match is None:
        raise ConfigError(f"{target!r} is not NAMESPACE/SERVICE:PORT, such as s3/s3:7070")
    process = node.require_alive(cluster)
    address = kube.get("service", match["service"], match["namespace"])["spec"].get("clusterIP", "None")
    if address == "None":
        raise ConfigError(f"Service {target} has no cluster address (it is headless). Choose one that has")
    name = f"{match['namespace']}-{match['service']}-{match['port']}"
    return start(cluster, process.pid, name, address, int(match["port"]), port)


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "its log is empty"
