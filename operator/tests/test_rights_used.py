"""The rights that the chart grants are those that the operator uses: every one, and no other, by the audit log.

An operator goes through all that it ever does to the API server, its runs in another namespace than its release's, and
a right is compared with where and on which object it is granted. Every other test takes part, too: whatever is
forbidden to an operator's process fails the session, and at its end what all operators of all tests used has to be
what is granted (`suite_rights`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from copy import deepcopy
from pathlib import Path

import api_audit
import chart_account
import pytest
import s3_server
import suite_rights
from api_audit import Right
from loop_world import Cluster, cluster_in, wait_for
from run_manifests import TRAIN

from deepcoder_contracts.api import run
from deepcoder_contracts.api.schema import custom_resource_definition
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import PODS, POOLS, RUNS, SECRETS, Resource

pytestmark = [pytest.mark.apiserver, pytest.mark.s3]

NAMESPACES = Resource("", "v1", "namespaces", "Namespace")
RUNS_NAMESPACE = "the-runs"
"""Stands in for the name of the runs' namespace while the chart is rendered."""


async def certificates(cluster: Cluster) -> None:
    """They are made, and where they are damaged, renewed in place."""
    name, home = cluster.account.config["progress"]["tlsSecret"], cluster.account.namespace
    await cluster.start_operator()
    await wait_for("the operator is ready", cluster.ready)
    await cluster.kill_operator()
    await cluster.kube.patch(SECRETS, home, name, {"data": {"tls.key": ""}})
    await cluster.start_operator()
    await wait_for("the operator is ready again", cluster.ready)


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

    async def met() -> bool:
        _, metrics = await cluster.probe("metrics")
        return re.search(r'passes_total{result="conflict"} [1-9]', metrics) is not None

    async def met_or_at_rest() -> bool:
        return await met() or (await cluster.run()).get("status", {}).get("phase") == "Suspended"

    for _ in range(20):
        await cluster.create_run(stages=[TRAIN], suspend=True)
        touching = asyncio.create_task(_touch(cluster))
        try:  # no longer than it has to: an operator that is slower than this would never get to write
            await wait_for("a status that meets another's write, or none left to write", met_or_at_rest)
        finally:
            touching.cancel()
        await cluster.until_phase("Suspended")
        await cluster.kube.delete(RUNS, cluster.namespace, "demo")
        await wait_for("the run is gone", cluster.gone)
        if await met():
            return
    raise AssertionError("of twenty runs that were written all the while no status met another's write")


async def _touch(cluster: Cluster) -> None:
    for number in range(10_000):
        with suppress(errors.KubeError):
            patch: Object = {"metadata": {"labels": {"touched": str(number)}}}
            await cluster.kube.patch(RUNS, cluster.namespace, "demo", patch)


@pytest.fixture(params=["everywhere", "named"])
async def apart(
    request: pytest.FixtureRequest,
    kube: Kube,
    kubeconfig: Path,
    helm: str,
    chart: Path,
    namespace: str,
    s3: s3_server.S3Server,
    tmp_path: Path,
    unused_tcp_port_factory: Callable[[], int],
) -> AsyncIterator[Cluster]:
    """Runs in another namespace than the release's, which works everywhere or in the runs' alone."""
    home = f"{namespace}-home"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": home}}
    await kube.post(NAMESPACES.path(None), body)
    values = {"watchNamespaces": [RUNS_NAMESPACE]} if request.param == "named" else {}
    objects = chart_account.render(helm, chart, home, values, {RUNS_NAMESPACE: namespace})
    async with (
        chart_account.account(kube, kubeconfig, objects, home, tmp_path) as account,
        cluster_in(kube, account, s3, tmp_path, unused_tcp_port_factory, namespace) as made,
    ):
        yield made
    await kube.delete(NAMESPACES, None, home)


async def test_rights_used_are_the_rights_granted(
    apart: Cluster, kubeconfig: Path, request: pytest.FixtureRequest
) -> None:
    for scene in (
        certificates,
        writes_that_meet_others,
        run_through_a_failure_to_its_time_to_live,
        pool_that_shrinks,
        run_of_a_newer_release,
    ):
        await scene(apart)

    home = apart.account.namespace
    asked = api_audit.requests(kubeconfig, apart.account.user)
    needed = {right for r in asked for right in r.rights}
    roles = apart.account.roles
    suite_rights.note_granted(request.node.callspec.params["apart"], roles)
    assert faults(roles, needed, home) == []
    for more in EXCESSES:
        assert faults([*roles, excess(home, *more)], needed, home), f"nobody would notice {more}"
    for role in roles:
        for rule in role["rules"]:
            less = [r if r is not rule else r | {"verbs": r["verbs"][1:]} for r in role["rules"]]
            changed = [r if r is not role else r | {"rules": less} for r in roles]
            assert faults(changed, needed, home), f"nobody would notice the lack of {rule}"
            if "resourceNames" in rule:
                wide = [r if r is not rule else {k: v for k, v in r.items() if k != "resourceNames"} for r in less]
                assert faults([r if r is not role else r | {"rules": wide} for r in roles], needed, home)


EXCESSES = (
    ("", "secrets", "patch", False),
    ("", "secrets", "list", True),
    ("", "secrets", "create", True),
    ("coordination.k8s.io", "leases", "get", False),
    ("coordination.k8s.io", "leases", "patch", False),
    ("coordination.k8s.io", "leases", "patch", True),
    ("ray.io", "rayjobs", "patch", False),
    ("", "pods", "list", True),
)
"""Group, resource, verb, and whether in the release's namespace alone: what somebody may come to grant beside."""


def excess(home: str, group: str, resource: str, verb: str, at_home: bool) -> Object:
    meta = {"namespace": home} if at_home else {}
    return {"metadata": meta, "rules": [{"apiGroups": [group], "resources": [resource], "verbs": [verb]}]}


def faults(roles: list[Object], needed: set[Right], home: str) -> list[str]:
    """Where roles and what was needed are not equal."""
    granted = api_audit.granted(roles)
    missing = [n for n in needed if not any(g.covers(n) for g in granted)]
    return sorted(
        f"{fault}: {right}"
        for fault, rights in (
            ("missing", missing),
            ("spare", api_audit.spare(granted, needed)),
            ("wider than what it is used for", api_audit.too_wide(granted, needed, home)),
        )
        for right in rights
    )
