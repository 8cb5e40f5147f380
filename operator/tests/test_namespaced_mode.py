"""An operator that works in named namespaces: a whole run with Roles alone, and nothing asked of the cluster.

One of several namespaces may be deleted, and takes its Role along: the others notice nothing of it.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import api_audit
import chart_account
import pytest
import s3_server
from loop_world import Cluster, cluster_in, wait_for
from run_manifests import TRAIN, run_manifest

from deepcoder_contracts.progress import Desired
from deepcoder_operator.kube import access, errors
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import PODS, RUNS, Resource
from devcluster import doctor
from devcluster.artifacts import Artifacts
from devcluster.config import cache_root

NAMESPACES = Resource("", "v1", "namespaces", "Namespace")
ROLES = Resource("rbac.authorization.k8s.io", "v1", "roles", "Role")
pytestmark = [pytest.mark.apiserver, pytest.mark.s3]


@pytest.fixture
async def elsewhere(kube: Kube, namespace: str) -> AsyncIterator[str]:
    """A namespace that the operator was not given."""
    name = f"{namespace}-else"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    await kube.post(NAMESPACES.path(None), body)
    yield name
    await kube.delete(NAMESPACES, None, name)


@pytest.fixture
async def cluster(
    kube: Kube,
    kubeconfig: Path,
    helm: str,
    chart: Path,
    namespace: str,
    s3: s3_server.S3Server,
    tmp_path: Path,
    unused_tcp_port_factory: Callable[[], int],
) -> AsyncIterator[Cluster]:
    """An operator under the Roles that the chart makes for one named namespace."""
    objects = chart_account.render(helm, chart, namespace, {"watchNamespaces": [namespace]})
    async with (
        chart_account.account(kube, kubeconfig, objects, namespace, tmp_path) as account,
        cluster_in(kube, account, s3, tmp_path, unused_tcp_port_factory) as made,
    ):
        await made.start_operator()
        yield made


async def test_whole_run_with_roles_alone(cluster: Cluster, elsewhere: str, kubeconfig: Path) -> None:
    stranger = await cluster.kube.create(run_manifest(elsewhere))
    await cluster.create_run(stages=[TRAIN], failurePolicy={"backoff": {"initialSeconds": 0}})
    await wait_for("the operator is ready", cluster.ready)
    await cluster.until_running("demo-s0-a1")
    reply = await cluster.standin.report("demo-s0-a1", cluster.port, 5, reward_mean=0.25)
    assert reply.desired is Desired.RUN
    token = await cluster.standin.token("demo-s0-a1")
    await cluster.kube.delete(PODS, cluster.namespace, "demo-s0-a1-head", grace_seconds=0)
    await cluster.until_running("demo-s0-a2")
    # Figures alone would wait until they are due, for a quarter of a minute.
    assert (await cluster.run())["status"]["progress"]["display"] == "5/20"
    with pytest.raises(AssertionError, match="403"):
        await cluster.standin.report("demo-s0-a1", cluster.port, 6, token=token)

    await cluster.finish("demo-s0-a2")
    await cluster.until_phase("Complete")
    asked = api_audit.requests(kubeconfig, cluster.account.user)
    assert len(asked) > 50
    assert {r.verb for r in asked} >= {"create", "delete", "get", "list", "patch", "update", "watch"}
    assert {r.namespace for r in asked} == {cluster.namespace}, "whatever it asked for, it asked for in its namespace"
    assert [r for r in asked if not r.allowed] == []
    found = await cluster.kube.get(RUNS, elsewhere, "demo")
    assert found["metadata"]["resourceVersion"] == stranger["metadata"]["resourceVersion"]


@pytest.fixture
async def of_two(
    kube: Kube,
    kubeconfig: Path,
    helm: str,
    chart: Path,
    namespace: str,
    elsewhere: str,
    s3: s3_server.S3Server,
    tmp_path: Path,
    unused_tcp_port_factory: Callable[[], int],
) -> AsyncIterator[Cluster]:
    """An operator under the Roles that the chart makes for two namespaces, not started.

    Its requests are not among those that have to be granted: it is to be refused what it asks for.
    """
    objects = chart_account.render(helm, chart, namespace, {"watchNamespaces": [namespace, elsewhere]})
    async with (
        chart_account.account(kube, kubeconfig, objects, namespace, tmp_path) as account,
        cluster_in(kube, account, s3, tmp_path, unused_tcp_port_factory) as made,
    ):
        made.identity = "refused-operator"
        yield made


async def shut_out(cluster: Cluster, namespace: str) -> None:
    """Take the operator's Role away in a namespace, and see to it that the API server has taken notice."""
    for role in (await cluster.kube.list(ROLES, namespace))[0]:
        await cluster.kube.delete(ROLES, namespace, role["metadata"]["name"])
    operator = Kube(access.of_kubeconfig(str(cluster.account.kubeconfig)))

    async def refused() -> bool:
        try:
            await operator.get(RUNS, namespace, "left")
        except errors.Forbidden:
            return True
        return False

    try:
        await wait_for("the namespace is closed to it", refused)
    finally:
        await operator.close()


async def test_watched_namespace_that_is_deleted_stops_no_other_and_is_freed_by_the_command_of_the_docs(
    of_two: Cluster, elsewhere: str, kubeconfig: Path
) -> None:
    """In which order its objects go is the API server's business: here the Role goes first, while the operator runs."""
    kube = of_two.kube
    await kube.create(run_manifest(elsewhere, "left"))
    await of_two.start_operator()

    async def held() -> bool:
        return bool((await kube.get(RUNS, elsewhere, "left"))["metadata"].get("finalizers"))

    await wait_for("the other namespace's run is held for its drain", held)
    await shut_out(of_two, elsewhere)
    await kube.delete(NAMESPACES, None, elsewhere)
    await of_two.create_run(stages=[TRAIN])
    await of_two.until_running("demo-s0-a1")
    assert of_two.process is not None
    assert of_two.process.returncode is None, "it is the same one"
    await of_two.kill_operator()
    await of_two.start_operator()
    await of_two.finish("demo-s0-a1")
    await of_two.until_phase("Complete")
    await wait_for("the operator is ready", of_two.ready)
    assert await held(), "nobody is left who may let it go"

    page = (Path(__file__).resolve().parents[2] / "docs" / "failure-modes.md").read_text()
    (command,) = re.findall(r"`(kubectl -n TEAM patch dcr [^`]*)`", page)
    typed = command.replace("TEAM", elsewhere).replace("NAME", "left")
    tools = Artifacts(cache_root(), doctor.go_version()).kubectl.parent
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "KUBECONFIG": str(kubeconfig), "HOME": str(tools)}
    subprocess.run(["bash", "-c", typed], env=environment, timeout=60, check=True)

    async def gone() -> bool:
        return await kube.find(NAMESPACES, None, elsewhere) is None

    await wait_for("the namespace is gone", gone)
