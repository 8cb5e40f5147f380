"""The demo's run, repeated on one cluster while everything that it needs is killed at random.

Each run must become Complete, its chain must verify, and the cluster must hold no more after the last run than after
the second. `SOAK_RUNS` (10) and `SOAK_SEED` (0) change the number of runs and the kills; `SOAK_PAGE=FILE` writes the
dated page and its picture.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import soak_counts
import soak_page
from e2e_world import World, patient, wait_until
from soak_blows import Blows
from soak_counts import Counts

from deepcoder_demo import manifest
from deepcoder_demo.settings import OPERATOR_NAMESPACE, tool
from devcluster.config import Cluster

RUNS = int(os.environ.get("SOAK_RUNS", "10"))
SEED = int(os.environ.get("SOAK_SEED", "0"))
RUN_SECONDS = 1500
GONE_SECONDS = 240
QUIET_SECONDS = 240
ALLOWED = {"memory_mb": 120.0, "descriptors": 120, "processes": 8, "cgroups": 8, "mounts": 8, "api_objects": 8}
"""The allowed increase since the second run. One leak per run would be eight after the tenth."""

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.long,
    pytest.mark.timeout(RUNS * (RUN_SECONDS + GONE_SECONDS + QUIET_SECONDS)),
]


def test_runs_in_a_row_complete_while_everything_is_killed_and_leave_nothing(world: World) -> None:
    cluster = Cluster.named()
    rows: list[soak_page.Row] = []
    with Blows(world, cluster.cgroup, SEED) as blows:
        for number in range(1, RUNS + 1):
            name = f"soak-{number:02}"
            remove(world, name)
            began = time.monotonic()
            world.create(demo_run(world, name))
            blows.aim(name)
            status = completed(world, name)
            blows.aim(None)
            seconds = time.monotonic() - began
            wait_until("the platform is whole again", patient(lambda: whole(world)), QUIET_SECONDS)
            links = verified(world, name)
            objects, megabytes = soak_counts.stored_objects(world, status["provenance"]["storage"])
            remove(world, name)
            after = wait_until(f"nothing of {name} runs", patient(lambda: idle(world, cluster)), QUIET_SECONDS)
            rows.append(
                soak_page.Row(name, seconds, status["ordinal"], links, objects, megabytes, tuple(blows.of(name)), after)
            )
            print(rows[-1], flush=True)
            if page := os.environ.get("SOAK_PAGE"):
                soak_page.write(Path(page), rows, blows.missed, f"{os.cpu_count()} cores, Linux {platform.release()}")
    assert all(row.blows for row in rows), "a run went by that nothing struck"
    second, last = rows[1].after, rows[-1].after
    grown = {name: (getattr(second, name), getattr(last, name)) for name in ALLOWED}
    assert {n: pair for n, pair in grown.items() if pair[1] > pair[0] + ALLOWED[n]} == {}
    assert (last.ray_processes, last.sandbox_processes, last.unfinished_uploads) == (0, 0, 0)


def demo_run(world: World, name: str) -> dict[str, Any]:
    """The demo's run with another name, which may fail more often than a demo should."""
    run = manifest.rendered(manifest.load(), world.cluster.s3)
    run["metadata"] = {"name": name, "namespace": world.namespace}
    run["spec"]["failurePolicy"] = {"maxAttempts": 20, "backoff": {"initialSeconds": 1, "maxSeconds": 5}}
    return run


def completed(world: World, name: str) -> dict[str, Any]:
    """The status of a run once it is Complete; a failed run ends the soak at once."""
    look = patient(lambda: world.status(name))

    def ended() -> dict[str, Any] | None:
        status = look() or {}
        assert status.get("phase") != "Failed", f"{name} failed: {json.dumps(status)[-3000:]}"
        return status if status.get("phase") == "Complete" else None

    return wait_until(f"{name} is Complete", ended, RUN_SECONDS, patient(lambda: world.brief(name)))


def verified(world: World, name: str) -> int:
    """Number of manifests that `verify --deep` checks from the run's checkpoints to their roots; all must be valid."""
    done = subprocess.run(
        [
            *(tool("kubectl-deepcoder"), "verify", name, "-n", world.namespace, "--deep", "-o", "json"),
            *("--endpoint", world.cluster.s3.host_endpoint),
        ],
        env={**os.environ, "KUBECONFIG": str(world.cluster.kubeconfig)},
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])
    found = json.loads(done.stdout)
    assert found["problems"] == []
    return len(found["verified"])


def remove(world: World, name: str) -> None:
    """Delete a run and wait until it is gone, whatever is killed meanwhile."""
    wait_until(f"{name} can be deleted", patient(lambda: (world.delete(name), True)[1]), GONE_SECONDS)
    wait_until(f"{name} is gone", patient(lambda: world.run(name) is None), GONE_SECONDS)


def whole(world: World) -> bool:
    """Whether the operator and the S3 server are ready, and none of their pods is terminating."""
    pods = [
        pod
        for ns in (OPERATOR_NAMESPACE, "s3")
        for pod in world.core.list_namespaced_pod(ns, _request_timeout=15).items
    ]
    return (
        all(
            pod.metadata.deletion_timestamp is None
            and any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or [])
            for pod in pods
        )
        and len(pods) >= 2
    )


def idle(world: World, cluster: Cluster) -> Counts | None:
    """Counts of the cluster once no pod of a run is left."""
    if not whole(world) or world.core.list_namespaced_pod(world.namespace, _request_timeout=15).items:
        return None
    counts = soak_counts.of(world, cluster)
    return counts if counts.ray_processes == counts.sandbox_processes == 0 else None
