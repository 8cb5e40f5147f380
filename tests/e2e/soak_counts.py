"""Counts what a cluster holds after a run is gone: memory, descriptors, processes, cgroups, mounts, objects.

Nothing of the run is left then, so whatever grows from run to run is a leak. Processes are all of the node's cgroup,
including pods. Memory is their proportional set size, which counts shared memory once. API objects are the API server's
own count by resource. Raises OSError, CommandFailed, or errors of the S3 client.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Any

from e2e_world import World

from deepcoder_demo import platform
from devcluster import cgroups, procfs
from devcluster.config import Cluster

OBJECTS = re.compile(r"^apiserver_(?:resource|storage)_objects\{([^}]*)\} (\S+)$", re.MULTILINE)
NOT_COUNTED = re.compile(r'resource="(events|leases)"')
"""These depend on time, not on runs: events live for an hour."""


@dataclass(frozen=True)
class Counts:
    """Counts of an idle cluster."""

    memory_mb: float
    """Proportional set size of all processes of the node and its pods, MiB."""
    descriptors: int
    processes: int
    ray_processes: int
    sandbox_processes: int
    cgroups: int
    mounts: int
    api_objects: int
    unfinished_uploads: int
    """Multipart uploads that were neither completed nor aborted."""


def of(world: World, cluster: Cluster) -> Counts:
    """Count what a cluster without runs holds."""
    pids = sorted(cgroups.processes(cluster.cgroup))
    lines = [" ".join(procfs.command_line(pid)) for pid in pids]
    node = procfs.load(cluster.node_record)
    assert node is not None, "the node has no record"
    return Counts(
        memory_mb=round(sum(map(_proportional_kb, pids)) / 1024, 1),
        descriptors=sum(map(_descriptors, pids)),
        processes=len(pids),
        ray_processes=sum("raylet" in line or "gcs_server" in line or "ray::" in line for line in lines),
        sandbox_processes=sum("deepcoder-sandbox" in line or "deepcoder_sandbox" in line for line in lines),
        cgroups=_cgroups(cluster.cgroup),
        mounts=len((procfs.PROC / str(node.pid) / "mountinfo").read_text().splitlines()),
        api_objects=_api_objects(world),
        unfinished_uploads=_unfinished_uploads(world),
    )


def stored_objects(world: World, storage: str) -> tuple[int, float]:
    """Number of objects below a run's folder in the bucket, and their MiB."""
    bucket, _, prefix = storage.removeprefix("s3://").partition("/")
    pages = world.s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    sizes = [item["Size"] for page in pages for item in page.get("Contents", [])]
    return len(sizes), round(sum(sizes) / 2**20, 1)


def _proportional_kb(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in (procfs.PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0  # the process has just ended


def _descriptors(pid: int) -> int:
    with contextlib.suppress(OSError):
        return len(list((procfs.PROC / str(pid) / "fd").iterdir()))
    return 0


def _cgroups(name: str) -> int:
    """Directories below the cluster's cgroup, in the hierarchy with the most of them."""
    return max(sum(path.is_dir() for path in (h.mount / name).rglob("*")) for h in cgroups.hierarchies())


def _api_objects(world: World) -> int:
    text = platform.kubectl(world.cluster, "get", "--raw", "/metrics")
    found = {labels: float(value) for labels, value in OBJECTS.findall(text) if not NOT_COUNTED.search(labels)}
    assert found, "the API server's metrics have no count of objects"
    return int(sum(value for value in found.values() if value > 0))


def _unfinished_uploads(world: World) -> int:
    found: dict[str, Any] = world.s3().list_multipart_uploads(Bucket=world.cluster.s3.bucket)
    return len(found.get("Uploads", []))
