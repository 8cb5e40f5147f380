"""An upgrade of CRDs and operator in mid-run: what runs stays as it is, what is new shows in the next attempt."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from pathlib import Path

import pytest
from loop_world import Cluster, wait_for
from released_crds import before_the_upgrade
from run_manifests import TRAIN

from deepcoder_contracts.labels import LABEL_POOL
from deepcoder_operator.kube.client import Object
from deepcoder_operator.kube.resources import CONFIGMAPS, NETWORK_POLICIES, PODS, RAYCLUSTERS, RAYJOBS, RUNS

pytestmark = [pytest.mark.apiserver, pytest.mark.s3]

NEXT_RELEASE = """
from deepcoder_operator.__main__ import main
from deepcoder_operator.builders import rayjob
from deepcoder_operator.kube import lease

lease.RENEW_SECONDS = 3600.0  # as of all operators in tests
rayjob.TTL_SECONDS = 61
rayjob.RAY_VERSION = "99.0.0"
main()
"""
RESOURCES = (RAYJOBS, RAYCLUSTERS, PODS, CONFIGMAPS)


async def children(cluster: Cluster, attempt: str) -> dict[tuple[str, str], tuple[str, str]]:
    """What an attempt consists of, with uid and version of each."""
    found: list[Object] = []
    for resource in RESOURCES:
        found += (await cluster.kube.list(resource, cluster.namespace))[0]
    metas = [(o["kind"], o["metadata"]) for o in found if o["metadata"]["name"].startswith((attempt, "demo-config"))]
    return {(kind, m["name"]): (m["uid"], m["resourceVersion"]) for kind, m in metas}


async def judge_of_no_user(cluster: Cluster) -> bool:
    pods, _ = await cluster.kube.list(PODS, cluster.namespace)
    judges = [pod["spec"] for pod in pods if LABEL_POOL in pod["metadata"]["labels"]]
    return any("runAsUser" not in judge["securityContext"] for judge in judges)


@pytest.mark.early
async def test_upgrade_in_mid_run_leaves_what_runs_as_it_is(cluster: Cluster, tmp_path: Path) -> None:
    async with before_the_upgrade(cluster.kube, cluster.namespace):
        await cluster.create_run(stages=[TRAIN], failurePolicy={"backoff": {"initialSeconds": 0}})
        await cluster.until_running("demo-s0-a1")
    await cluster.standin.report("demo-s0-a1", cluster.port, 5)
    before = await children(cluster, "demo-s0-a1")
    assert {kind for kind, _ in before} == {r.kind for r in RESOURCES}
    assert cluster.process is not None
    cluster.process.send_signal(signal.SIGTERM)
    assert await cluster.process.wait() == 0

    newer = tmp_path / "newer.py"
    newer.write_text(NEXT_RELEASE)
    images = {"trainer": "trainer:2", "sandbox": "sandbox:2"}
    changed = {"monitoringNamespace": "monitoring", "kuberayNamespace": "ray", "fixedUser": False}
    await cluster.start_operator(str(newer), images=images, **changed)
    await wait_for("the next release is ready", cluster.ready)
    await cluster.kube.patch(RUNS, cluster.namespace, "demo", {"spec": {"approvedStages": ["short"]}})
    await cluster.until("it has looked", lambda run: run["status"]["observedGeneration"] == 2)
    await cluster.standin.report("demo-s0-a1", cluster.port, 9)
    await asyncio.sleep(2)
    assert await children(cluster, "demo-s0-a1") == before
    assert (await cluster.run())["status"]["attempt"]["ordinal"] == 1

    await cluster.kube.delete(PODS, cluster.namespace, "demo-s0-a1-head", grace_seconds=0)
    await cluster.until_running("demo-s0-a2")
    job = (await cluster.kube.get(RAYJOBS, cluster.namespace, "demo-s0-a2"))["spec"]
    assert (job["ttlSecondsAfterFinished"], job["rayClusterSpec"]["rayVersion"]) == (61, "99.0.0")
    pod = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "trainer:1", "the run's own, which no default of a release changes"
    assert "runAsUser" not in pod["securityContext"]
    await wait_for("a judge names no user", partial(judge_of_no_user, cluster))
    policies, _ = await cluster.kube.list(NETWORK_POLICIES, cluster.namespace)
    assert "monitoring" in str([p["spec"] for p in policies if p["metadata"]["name"].startswith("demo")])
