"""One team's bucket is at a server that takes connections and never answers: the other team's run starts all the same.

Forty runs are more than there are places for passes, and each would hold one for as long as S3's client waits.
"""

from __future__ import annotations

import asyncio

import pytest
from loop_world import Cluster, wait_for
from run_manifests import run_manifest

from deepcoder_operator.kube.resources import RUNS

pytestmark = [pytest.mark.apiserver, pytest.mark.s3]


NEVER = 3600.0
LIMITS = ("storage.s3._READ_SECONDS", "storage.service.DEADLINE_SECONDS", "storage.bulkhead.WAIT_SECONDS")
"""After which the operator gives up waiting for an answer of S3: a place for a pass then comes free."""


async def test_run_of_a_healthy_bucket_starts_beside_forty_whose_server_never_answers(
    site: Cluster, blackhole: str
) -> None:
    cluster, site.constants = site, site.constants | dict.fromkeys(LIMITS, NEVER)
    await cluster.start_operator()
    await wait_for("the operator is ready", cluster.ready)
    for number in range(40):
        s3 = {"bucket": "dead", "endpoint": blackhole, "credentialsSecretRef": {"name": "s3"}}
        await cluster.kube.create(run_manifest(cluster.namespace, f"dead-{number}", checkpoint={"s3": s3}))

    async def all_held() -> bool:
        runs, _ = await cluster.kube.list(RUNS, cluster.namespace)
        return all(r["metadata"].get("finalizers") for r in runs)

    await wait_for("all runs have been looked at once", all_held)
    await asyncio.sleep(1)
    await cluster.create_run()
    await cluster.until_running("demo-s0-a1")
    runs, _ = await cluster.kube.list(RUNS, cluster.namespace)
    dead = [r for r in runs if r["metadata"]["name"].startswith("dead-")]
    assert len(dead) == 40
    assert not any((r.get("status") or {}).get("attempt") for r in dead)
    given_up = [r["metadata"]["name"] for r in dead if "StorageUnreachable" in str(r["status"])]
    assert not given_up, "none of them was given up, so it has waited for none"
