"""Kills parts of the platform at random during a soak and records it: pods of a run, operator, S3 server, API server.

Nothing is asked to stop: pods are deleted without a grace period, and the API server's process gets SIGKILL. Targets
and moments come from a seed; the exact time of each depends on the machine. A blow that finds no target, or whose
request fails because an earlier blow hit the API server, counts as missed.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from e2e_world import World
from kubernetes import client
from urllib3.exceptions import HTTPError

from deepcoder_contracts.labels import LABEL_POOL, LABEL_RUN, own_pool_name
from deepcoder_demo.settings import OPERATOR_NAMESPACE
from devcluster import cgroups, procfs

PAUSE_SECONDS = (20.0, 40.0)
TRAINER_BLOWS_A_RUN = 2
"""Each costs a run the start of an attempt; with more of them, a soak would consist only of starts."""
OPERATOR = "app.kubernetes.io/name=deepcoder-operator"


@dataclass(frozen=True)
class Blow:
    """One kill; `second` counts from the soak's start."""

    second: float
    run: str
    target: str
    name: str


class Blows:
    """Kills one target after another while a run is set; pauses between runs."""

    def __init__(self, world: World, node_cgroup: str, seed: int) -> None:
        self._world, self._cgroup = world, node_cgroup
        self._random = random.Random(seed)
        self._run: str | None = None
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._strike_on, name="soak-blows", daemon=True)
        self._lock = threading.Lock()
        self.landed: list[Blow] = []
        self.missed = 0

    def __enter__(self) -> Blows:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(60)

    def aim(self, run: str | None) -> None:
        """Set the current run. None pauses; a blow in progress is over when this returns."""
        with self._lock:
            self._run = run

    def of(self, run: str) -> list[Blow]:
        """The kills during a run."""
        return [blow for blow in self.landed if blow.run == run]

    def _strike_on(self) -> None:
        targets: dict[str, Callable[[str], str | None]] = {
            "head": lambda run: self._pod_of(self._world.namespace, f"{LABEL_RUN}={run},ray.io/node-type=head"),
            "worker": lambda run: self._pod_of(self._world.namespace, f"{LABEL_RUN}={run},ray.io/node-type=worker"),
            "judge": lambda run: self._pod_of(self._world.namespace, f"{LABEL_POOL}={own_pool_name(run)}"),
            "operator": lambda run: self._pod_of(OPERATOR_NAMESPACE, OPERATOR),
            "S3 server": lambda run: self._pod_of("s3", "app.kubernetes.io/name=s3"),
            "API server": lambda run: kill_api_server(self._cgroup),
        }
        while not self._ended.wait(self._random.uniform(*PAUSE_SECONDS)):
            target = self._random.choice(list(targets))
            with self._lock:
                run = self._run
                if run is None or (target in ("head", "worker") and self._trainer_blows(run) >= TRAINER_BLOWS_A_RUN):
                    continue
                try:
                    name = targets[target](run)
                except (client.ApiException, HTTPError, OSError):
                    name = None
                if name is None:
                    self.missed += 1
                else:
                    self.landed.append(Blow(time.monotonic() - self._began, run, target, name))

    def _trainer_blows(self, run: str) -> int:
        return sum(blow.target in ("head", "worker") for blow in self.of(run))

    def _pod_of(self, namespace: str, selector: str) -> str | None:
        found = self._world.core.list_namespaced_pod(namespace, label_selector=selector, _request_timeout=5).items
        running = sorted(pod.metadata.name for pod in found if pod.status.phase == "Running")
        if not running:
            return None
        name: str = self._random.choice(running)
        self._world.kill_pod(name, namespace)
        return name


def kill_api_server(node_cgroup: str) -> str | None:
    """SIGKILL the process; returns which it was, None if there is none. The node starts another."""
    for pid in cgroups.processes(node_cgroup):
        if any(word.endswith("kube-apiserver") for word in procfs.command_line(pid)[:1]):
            os.kill(pid, signal.SIGKILL)
            return f"pid {pid}"
    return None
