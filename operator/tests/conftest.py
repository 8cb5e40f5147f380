"""Fixtures over the real API server of `known_kinds`: a client, a namespace of each test's own.

Programs in Go that tests start (helm, kubectl, promtool) collect garbage less often than by default: a quarter of
helm's CPU time goes into that.
"""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import api_audit
import chart_account
import control_plane
import known_kinds
import played_run
import pytest
import s3_server
from loop_world import Cluster, cluster_in
from suite_rights import pytest_sessionfinish as pytest_sessionfinish
from waits import WAIT_SECONDS

from deepcoder_operator.kube import access
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import PODS, POOLS, RAYCLUSTERS, RAYJOBS, RUNS, Resource
from devcluster import tools
from devcluster.config import cache_root

os.environ.setdefault("GOGC", "400")

NAMESPACES = Resource("", "v1", "namespaces", "Namespace")

_KEPT: dict[Path, str] = {}
"""The namespace of each API server that tests have one after the other."""


@pytest.fixture(scope="session")
def chart() -> Path:
    """Folder of the chart."""
    return Path(__file__).resolve().parents[2] / "helm" / "deepcoder-operator"


@pytest.fixture(scope="session")
def helm() -> str:
    """The helm binary, from PATH or from the cache that the development cluster keeps."""
    return shutil.which("helm") or str(tools.fetch(cache_root()) / "helm")


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Kubeconfig of an API server with our CRDs and KubeRay's that lives as long as the test session."""
    paths = control_plane.programs()
    if paths is None:
        pytest.skip("the API server has not been built: run `python -m devcluster build`")
    with known_kinds.running(tmp_path_factory.mktemp("control-plane"), paths) as path:
        yield path
        asked = [r for r in api_audit.of_operators(path) if not r.allowed]
        forbidden = [f"{r.verb} {r.rights[0].resource} in {r.namespace} at {r.at}" for r in asked]
        assert not forbidden, f"operators asked for what the chart does not grant: {'; '.join(forbidden[:10])}"


@pytest.fixture
async def kube(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kube]:
    """A client of the API server, which waits longer than an operator's: a busy machine takes its time for a CRD."""
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    client = Kube(access.find(), deadline=WAIT_SECONDS)
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture
async def namespace(kube: Kube) -> AsyncIterator[str]:
    """A namespace of the test's own, restricted as ours are; what operators of the whole cluster follow goes with the
    test. The namespace stays: to let one go takes the API server eighty requests."""
    name = f"t-{uuid.uuid4().hex[:10]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    await kube.post(NAMESPACES.path(None), body)
    yield name
    for resource in (RUNS, POOLS, RAYJOBS, RAYCLUSTERS, PODS):
        await kube.delete(resource, name, "", grace_seconds=0)  # all of them; KubeRay's kinds may not be there


@pytest.fixture
async def kept_namespace(kube: Kube, kubeconfig: Path) -> AsyncIterator[str]:
    """A namespace of many tests, one after the other, that make nothing but runs and pools, which no operator takes up:
    they go, and it stays. To let a namespace go takes the API server as long as ten such tests."""
    name = _KEPT.get(kubeconfig)
    if name is None:
        name = _KEPT[kubeconfig] = f"kept-{uuid.uuid4().hex[:10]}"
        await kube.post(NAMESPACES.path(None), {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    for resource in (RUNS, POOLS):
        for made in (await kube.list(resource, name))[0]:
            await kube.delete(resource, name, made["metadata"]["name"])


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_server.S3Server]:
    """An S3 server that lives as long as the test session."""
    program = s3_server.program()
    if program is None:
        pytest.skip("the S3 server has not been built: run `python -m devcluster build`")
    with s3_server.running(tmp_path_factory.mktemp("s3"), program) as server:
        yield server


@pytest.fixture(scope="module")
def played(
    kubeconfig: Path, s3: s3_server.S3Server, helm: str, chart: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[played_run.PlayedRun]:
    """A run that has been through the operator, for tests of what people see.

    No longer than a module's tests: others take the CRDs away, and all runs with them.
    """
    with played_run.playing(kubeconfig, s3, helm, chart, tmp_path_factory.mktemp("played")) as made:
        yield made


@pytest.fixture
async def account(
    kube: Kube, kubeconfig: Path, helm: str, chart: Path, namespace: str, tmp_path: Path
) -> AsyncIterator[chart_account.Account]:
    """The operator's ServiceAccount with the rights of a release in the test's namespace."""
    objects = chart_account.render(helm, chart, namespace)
    async with chart_account.account(kube, kubeconfig, objects, namespace, tmp_path) as made:
        yield made


@pytest.fixture
async def site(
    kube: Kube,
    account: chart_account.Account,
    s3: s3_server.S3Server,
    tmp_path: Path,
    unused_tcp_port_factory: Callable[[], int],
) -> AsyncIterator[Cluster]:
    """A namespace with all that runs need but an operator."""
    async with cluster_in(kube, account, s3, tmp_path, unused_tcp_port_factory) as made:
        yield made


@pytest.fixture
async def cluster(site: Cluster) -> Cluster:
    """A namespace with all that runs need, and the operator as a process."""
    await site.start_operator()
    return site


@pytest.fixture
def blackhole() -> Iterator[str]:
    """A server that takes connections and never says a word; those that wait are let go at the end."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(256)
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.close()
