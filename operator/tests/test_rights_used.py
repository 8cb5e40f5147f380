"""The rights that the chart grants are those that the operator uses: every one, and no other, by the audit log.

One operator goes through all that it ever does to the API server. That no right is missing is held by every other test
too: whatever is forbidden to an operator's process fails the session (conftest).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from copy import deepcopy
from pathlib import Path

import api_audit
import pytest
from api_audit import Right
from loop_world import Cluster, wait_for
from run_manifests import TRAIN

from deepcoder_operator.api import run
from deepcoder_operator.api.schema import custom_resource_definition
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import PODS, POOLS, RUNS

pytestmark = [pytest.mark.apiserver, pytest.mark.s3]


async def damaged_certificates(cluster: Cluster) -> None:
    """They are renewed in place."""
    meta = {"name": cluster.account.config["progress"]["tlsSecret"], "namespace": cluster.namespace}
    await cluster.kube.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": {"tls.key": ""}})


async def run_through_a_failure_to_its_time_to_live(cluster: Cluster) -> None:
    """Its finalizer, its attempts, its own pool, reports, and the deletion of what is left of it."""
    await cluster.create_run(
        stages=[TRAIN],
        sandbox={"template": {"minReplicas": 1}},
        failurePolicy={"backoff": {"initialSeconds": 0}},
        cleanup={"ttlSecondsAfterFinished": 1},
    )
    await cluster.until_running("demo-s0-a1")
    await cluster.standin.report("demo-s0-a1", cluster.port, 5)
    await cluster.standin.leave("demo-s0-a1", 1, "Crashed")
    await cluster.until_running("demo-s0-a2")
    await cluster.kube.delete(PODS, cluster.namespace, "demo-s0-a2-head", grace_seconds=0)
    await cluster.finish("demo-s0-a3")
    await wait_for("the run is deleted after its time to live", cluster.gone)


async def pool_that_shrinks(cluster: Cluster) -> None:
    """A judge too many is deleted."""
    meta = {"name": "judges", "namespace": cluster.namespace}
    spec = {"scaling": {"mode": "External"}, "replicas": 1, "minReplicas": 0}
    await cluster.kube.create({"apiVersion": POOLS.api_version, "kind": POOLS.kind, "metadata": meta, "spec": spec})
    for wanted in (1, 0):
        await cluster.kube.patch(POOLS, cluster.namespace, "judges", {"spec": {"replicas": wanted}})

        async def settled(wanted: int = wanted) -> bool:
            status = (await cluster.kube.get(POOLS, cluster.namespace, "judges")).get("status") or {}
            return bool(status) and status.get("replicas", 0) == wanted

        await wait_for(f"{wanted} judges", settled)


@asynccontextmanager
async def newer_crd(kube: Kube) -> AsyncIterator[None]:
    """The API server knows a word that this release does not."""
    ours = custom_resource_definition(run.RESOURCE)
    newer = deepcopy(ours)
    schema = newer["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"]["recipe"]["properties"]["order"]["enum"].append("Newest")
    await kube.apply(newer)
    try:
        yield
    finally:
        await kube.apply(ours)


async def run_of_a_newer_release(cluster: Cluster) -> None:
    """What cannot be read is said in the conditions alone."""

    async def accepted() -> bool:
        with suppress(errors.Invalid):
            await cluster.create_run(stages=[TRAIN], recipe={"order": "Newest"})
            return True
        return False

    async with newer_crd(cluster.kube):
        await wait_for("the API server takes the new word", accepted)
        await cluster.until_reason("Progressing", "SpecUnreadable")
        await cluster.kube.delete(RUNS, cluster.namespace, "demo")
        await wait_for("the run is gone", cluster.gone)


async def writes_that_meet_others(cluster: Cluster) -> None:
    """Whose status was refused, since the run had changed, reads it anew."""
    await cluster.create_run(stages=[TRAIN], suspend=True)
    touching = asyncio.create_task(_touch(cluster))
    try:
        await cluster.until_phase("Suspended")
    finally:
        touching.cancel()
    await cluster.kube.delete(RUNS, cluster.namespace, "demo")
    await wait_for("the run is gone", cluster.gone)


async def _touch(cluster: Cluster) -> None:
    for number in range(10_000):
        with suppress(errors.KubeError):
            patch: Object = {"metadata": {"labels": {"touched": str(number)}}}
            await cluster.kube.patch(RUNS, cluster.namespace, "demo", patch)


async def test_rights_used_are_the_rights_granted(site: Cluster, kubeconfig: Path) -> None:
    await damaged_certificates(site)
    await site.start_operator()
    await wait_for("the operator is ready", site.ready)
    for scene in (
        writes_that_meet_others,
        run_through_a_failure_to_its_time_to_live,
        pool_that_shrinks,
        run_of_a_newer_release,
    ):
        await scene(site)

    asked = api_audit.requests(kubeconfig, site.account.user)
    used, forbidden = (
        {right for r in asked if r.allowed is allowed for right in r.rights} for allowed in (True, False)
    )
    granted = api_audit.granted(site.account.roles)
    assert not forbidden, f"missing, asked for and not granted: {told(forbidden)}"
    assert not granted - used, f"spare, granted and never used: {told(granted - used)}"
    assert not used - granted, f"used by a right that is not the chart's: {told(used - granted)}"


def told(rights: set[Right]) -> str:
    return ", ".join(sorted(f"{r.verb} {r.resource}.{r.group}" for r in rights))
