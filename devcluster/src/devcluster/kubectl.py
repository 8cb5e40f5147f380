"""kubectl and helm against one cluster, with deadlines.

Fails with CommandFailed, which shows the program's output; a wait that times out says what it waited for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devcluster.artifacts import Artifacts
from devcluster.command import CommandFailed, run
from devcluster.config import Cluster

_REQUEST_SECONDS = 30.0


class Kube:
    """The API of a running cluster."""

    def __init__(self, cluster: Cluster, artifacts: Artifacts) -> None:
        self._artifacts = artifacts
        self._environment = {"KUBECONFIG": str(cluster.kubeconfig), "HELM_NO_PLUGINS": "1"}

    def kubectl(self, *arguments: str | Path, stdin: bytes | None = None, deadline: float = _REQUEST_SECONDS) -> str:
        """Run kubectl and return its output."""
        return run([self._artifacts.kubectl, *arguments], deadline=deadline, env=self._environment, stdin=stdin)

    def helm(self, *arguments: str | Path, deadline: float = 120.0) -> str:
        """Run helm and return its output."""
        return run([self._artifacts.helm, *arguments], deadline=deadline, env=self._environment)

    def get(self, kind: str, name: str, namespace: str = "default") -> dict[str, Any]:
        """One object; raises CommandFailed if it does not exist."""
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-n", namespace, "-o", "json"))
        return found


def wait_for(what: str, ready: Callable[[], bool], seconds: float, pause: float = 0.2) -> None:
    """Wait until `ready()`; an error of kubectl counts as not yet. Raises CommandFailed naming `what`."""
    deadline = time.monotonic() + seconds
    last = ""
    while True:
        try:
            if ready():
                return
        except CommandFailed as reason:
            last = f": {reason}"
        if time.monotonic() > deadline:
            raise CommandFailed(f"gave up after waiting {seconds:.0f} s for {what}{last}")
        time.sleep(pause)
