"""Starts, stops and checks one cluster.

`up` records each change before it makes it, so `down` can undo a cluster that ended anywhere: half-way through `up`, by
SIGKILL of any part, or with the machine. Both are idempotent and exclude each other. Only `up` needs a package beside
the standard library, because `down` must work after the packages were removed.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass

from devcluster import cgroups, forwards, host_settings, node, render, systemimages
from devcluster.artifacts import Artifacts
from devcluster.command import CommandFailed
from devcluster.components import components, network_policy_rights, specification
from devcluster.config import (
    API_PORT_INSIDE,
    DEFAULT_API_PORT,
    DEFAULT_NAME,
    KUBERNETES_SERVICE_IP,
    NODE_IP,
    Cluster,
)
from devcluster.containerd import ImageStore
from devcluster.debian import library_overlay, search_path
from devcluster.file_lock import exclusive
from devcluster.kubectl import Kube, wait_for
from devcluster.procfs import ProcessId
from devcluster.progress import say, step

API_FORWARD = "api"
_API_SECONDS = 90.0
_NODE_SECONDS = 90.0
_CONTAINERD_SECONDS = 30.0


@dataclass(frozen=True)
class Health:
    """What is wrong with a cluster; `exists` says whether any part of it exists."""

    exists: bool
    faults: tuple[str, ...]


def default_api_port(cluster: Cluster) -> int:
    """The main cluster has a fixed port; any other takes a free one (0)."""
    return DEFAULT_API_PORT if cluster.name == DEFAULT_NAME else 0


def health(cluster: Cluster, artifacts: Artifacts) -> Health:
    """Check everything that makes a cluster usable."""
    exists = cluster.state.exists() or cgroups.exists(cluster.cgroup)
    if node.running(cluster) is None:
        return Health(exists, ("the node is not running",))
    try:
        faults = [f"{part.name} is down ({part.last_exit})" for part in node.components(cluster) if not part.pid]
    except node.NodeError as reason:
        return Health(exists, (str(reason),))
    if forwards.find(cluster, API_FORWARD) is None:
        faults.append("the forward to the API server is not running")
    elif not faults:
        kube = Kube(cluster, artifacts)
        try:
            kube.kubectl("get", "--raw=/readyz", deadline=10)
            if not _node_ready(kube, cluster):
                faults.append("the node is not Ready")
        except CommandFailed as reason:
            faults.append(f"the API server does not answer: {reason}")
    return Health(exists, tuple(faults))


def up(cluster: Cluster, artifacts: Artifacts, api_port: int | None = None) -> None:
    """Start the cluster, verify a running one, or replace a damaged one."""
    with exclusive(cluster.lock, f"up of cluster {cluster.name}", 300):
        found = health(cluster, artifacts)
        if not found.faults:
            say(f"cluster {cluster.name} is up and healthy")
            return
        if found.exists:
            say(f"cluster {cluster.name} is damaged ({'; '.join(found.faults)}): starting it again")
            _down(cluster)
        try:
            _up(cluster, artifacts, default_api_port(cluster) if api_port is None else api_port)
        except BaseException:
            say(f"up failed; the logs are in {cluster.logs}, until you run: devcluster --name {cluster.name} down")
            raise


def down(cluster: Cluster) -> None:
    """Remove every trace of the cluster except its image store."""
    with exclusive(cluster.lock, f"down of cluster {cluster.name}", 300):
        _down(cluster)


def _up(cluster: Cluster, artifacts: Artifacts, api_port: int) -> None:
    from devcluster import pki  # the only module that needs more than the standard library

    images = systemimages.describe(artifacts)
    pause = images["pause"]
    with step("write certificates and configuration"):
        cluster.image_store.mkdir(parents=True, exist_ok=True)
        cluster.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        host_settings.enter(cluster.cgroup)
        pki.create(
            cluster.pki, cluster.node_name, NODE_IP, KUBERNETES_SERVICE_IP, f"https://127.0.0.1:{API_PORT_INSIDE}"
        )
        for name, content in render.files(cluster, artifacts.sysroot, pause.reference).items():
            (cluster.etc / name).parent.mkdir(parents=True, exist_ok=True)
            (cluster.etc / name).write_text(content)
        processes = components(cluster, artifacts.programs(), search_path(artifacts.sysroot))
        specified = specification(cluster, processes, library_overlay(artifacts.sysroot))
        cluster.node_spec.write_text(json.dumps(specified))
        cluster.var.mkdir(exist_ok=True)
        for directory in ("lib/containerd", "lib/etcd", "tmp"):
            (cluster.var / directory).mkdir(parents=True, exist_ok=True)
    with step("start the node"):
        process = node.start(cluster)
        forward = forwards.start(cluster, process.pid, API_FORWARD, "127.0.0.1", API_PORT_INSIDE, api_port)
        pki.write_kubeconfig(cluster.pki, "admin", f"https://127.0.0.1:{forward.port}", cluster.kubeconfig)
    with step("load the pause image"):
        store = ImageStore(process, artifacts.programs()["ctr"], cluster.image_store)
        wait_for("containerd to answer", lambda: _answers(cluster, store), _CONTAINERD_SECONDS)
        if pause.reference not in store.references():
            store.import_archive(systemimages.archive(pause, cluster.cache))
    with step("wait for the API server"):
        node.wait_for_api(cluster, _API_SECONDS)
        kube = Kube(cluster, artifacts)
        rights = {"apiVersion": "v1", "kind": "List", "items": network_policy_rights()}
        kube.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(rights).encode())
    with step(f"wait for node {cluster.node_name} to be Ready"):
        wait_for("the kubelet to report the node Ready", lambda: _checked(cluster, kube), _NODE_SECONDS)


def _down(cluster: Cluster) -> None:
    with step(f"take cluster {cluster.name} down"):
        process = node.running(cluster)
        if process is not None:
            process.kill()  # the kernel then ends all processes of its namespaces and removes their mounts and links
        cgroups.kill(cluster.cgroup)
        host_settings.leave(cluster.cgroup)
        if cluster.state.exists():
            shutil.rmtree(cluster.state)


def _answers(cluster: Cluster, store: ImageStore) -> bool:
    node.require_alive(cluster)
    try:
        store.references()
    except node.NodeError:
        return False
    return True


def _checked(cluster: Cluster, kube: Kube) -> bool:
    node.require_alive(cluster)
    return _node_ready(kube, cluster)


def _node_ready(kube: Kube, cluster: Cluster) -> bool:
    conditions = kube.get("node", cluster.node_name)["status"].get("conditions", [])
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)


def running_or_fail(cluster: Cluster) -> ProcessId:
    """Process 1 of the node; raises NodeError, which says how to start it."""
    process = node.running(cluster)
    if process is None:
        raise node.NodeError(f"cluster {cluster.name} is not up. Run: devcluster --name {cluster.name} up")
    return process
