"""Kueue, the real one, as a process beside the API server of the tests.

Its webhooks are not registered: they would suspend jobs and fill in defaults, and our jobs are made suspended. Built by
`python -m devcluster build --with kueue`; tests are skipped where it is not.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from crd_serving import established

from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import Resource
from devcluster import doctor
from devcluster.artifacts import Artifacts
from devcluster.config import cache_root

READY_SECONDS = 60.0
_WITH_CERTIFICATES = """
mount -t tmpfs none /etc && mkdir -p /etc/kueue/metrics && ln -s "$0" /etc/kueue/metrics/certs && exec "$@"
"""
"""It looks for those of its metrics below /etc, whatever it is told: it gets an /etc of its own."""

_GROUP, _VERSION = "kueue.x-k8s.io", "v1beta2"
FLAVORS = Resource(_GROUP, _VERSION, "resourceflavors", "ResourceFlavor")
CLUSTER_QUEUES = Resource(_GROUP, _VERSION, "clusterqueues", "ClusterQueue")
LOCAL_QUEUES = Resource(_GROUP, _VERSION, "localqueues", "LocalQueue")
WORKLOADS = Resource(_GROUP, _VERSION, "workloads", "Workload")
PRIORITIES = Resource("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass")


def built() -> Path | None:
    """Where the program and its CRDs lie, None if it has not been built."""
    directory = Artifacts(cache_root(), doctor.go_version()).directory("kueue")
    return directory if directory.exists() else None


async def create(kube: Kube, resource: Resource, obj: Object, namespace: str | None = None) -> None:
    """Make an object of a kind that the operator knows nothing of."""
    whole = {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
    await kube.post(resource.path(namespace), whole)


@asynccontextmanager
async def running(
    kube: Kube, kubeconfig: Path, directory: Path, built: Path, ports: list[int], **more: Any
) -> AsyncIterator[None]:
    """Install its CRDs, start it, wait until it is ready, and end it. `more` is added to its configuration."""
    for path in sorted((built / "manifests").glob("kueue.x-k8s.io_*.yaml")):
        crd = yaml.load(path.read_text(), yaml.CSafeLoader)
        await kube.apply(crd)
        await established(kube, crd["metadata"]["name"])
    health, metrics, webhook, visibility = ports
    keys = directory / "kueue-certificates"
    keys.mkdir()
    names = ["-keyout", f"{keys}/tls.key", "-out", f"{keys}/tls.crt", "-subj", "/CN=kueue"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    config = {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        "metrics": {"bindAddress": f"127.0.0.1:{metrics}"},
        "webhook": {"host": "127.0.0.1", "port": webhook, "certDir": str(keys)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "namespace": "kueue-system",
        "integrations": {"frameworks": ["ray.io/rayjob"]},
    } | more
    path = directory / "kueue.json"
    path.write_text(json.dumps(config))
    log = (directory / "kueue.log").open("wb")
    options = [f"--config={path}", f"--kubeconfig={kubeconfig}", f"--visibility-server-port={visibility}"]
    options.append("--feature-gates=VisibilityOnDemand=false")
    process = await asyncio.create_subprocess_exec(
        "unshare", "--mount", "sh", "-c", _WITH_CERTIFICATES, str(keys), str(built / "kueue"), *options,
        stdout=log, stderr=log, preexec_fn=_die_with_parent,
    )  # fmt: skip
    log.close()
    try:
        await _ready(process, health, directory / "kueue.log")
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _ready(process: asyncio.subprocess.Process, port: int, log: Path) -> None:
    try:
        async with asyncio.timeout(READY_SECONDS), aiohttp.ClientSession() as session:
            while process.returncode is None:
                try:
                    async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.2)
    except TimeoutError:
        pass
    raise RuntimeError(f"kueue is not ready:\n{log.read_text(errors='replace')[-4000:]}")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
