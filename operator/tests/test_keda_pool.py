"""A real KEDA scales a SandboxPool through its /scale: from none, with the programs that wait, and back to none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import control_plane
import keda_server
import pytest
from aiohttp import web
from pool_harness import NAME, Field, field_in, ready_count
from prometheus_client import generate_latest
from waits import eventually

from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import Resource

pytestmark = [pytest.mark.apiserver, pytest.mark.long, pytest.mark.timeout(400)]

SCALED_OBJECTS = Resource("keda.sh", "v1alpha1", "scaledobjects", "ScaledObject")
PROGRAMS_A_JUDGE = 4


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of an API server with autoscalers, for this module alone."""
    paths, built = control_plane.programs(), keda_server.built()
    if paths is None or built is None:
        pytest.skip("KEDA has not been built: run `python -m devcluster build --with keda`")
    with control_plane.running(tmp_path_factory.mktemp("control-plane"), paths, autoscaled=True) as path:
        yield path


@pytest.fixture
async def harness(
    kube: Kube, namespace: str, kubeconfig: Path, tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> AsyncIterator[Field]:
    """A namespace with judges that are played, and KEDA."""
    built = keda_server.built()
    assert built is not None
    ports = [unused_tcp_port_factory() for _ in range(4)]
    async with field_in(kube, namespace) as made, keda_server.running(kube, kubeconfig, tmp_path, built, ports):
        yield made


@pytest.fixture
async def metrics(unused_tcp_port: int) -> AsyncIterator[str]:
    """Where the operator's metrics are read."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), content_type="text/plain")

    app = web.Application()
    app.router.add_get("/metrics", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    yield f"http://127.0.0.1:{unused_tcp_port}/metrics"
    await runner.cleanup()


async def test_keda_wakes_a_pool_at_zero_follows_its_load_and_puts_it_to_rest(harness: Field, metrics: str) -> None:
    await harness.create(scaling={"mode": "External"}, replicas=0, minReplicas=0)
    trigger = {
        "type": "metrics-api",
        "metricType": "AverageValue",
        "metadata": {
            "url": metrics,
            "format": "prometheus",
            "valueLocation": f'deepcoder_operator_pool_demand{{namespace="{harness.namespace}",pool="{NAME}"}}',
            "targetValue": str(PROGRAMS_A_JUDGE),
        },
    }
    body = {
        "apiVersion": SCALED_OBJECTS.api_version,
        "kind": SCALED_OBJECTS.kind,
        "metadata": {"name": NAME},
        "spec": {
            "scaleTargetRef": {"apiVersion": "deepcoder.dev/v1alpha1", "kind": "SandboxPool", "name": NAME},
            "minReplicaCount": 0,
            "maxReplicaCount": 5,
            "pollingInterval": 1,
            "cooldownPeriod": 3,
            "triggers": [trigger],
        },
    }
    async with harness.controller():
        await eventually("the pool is seen", ready_count(0, harness))
        await harness.kube.post(SCALED_OBJECTS.path(harness.namespace), body)

        async def followed() -> bool:
            found = await harness.kube.get(SCALED_OBJECTS, harness.namespace, NAME)
            conditions = (found.get("status") or {}).get("conditions") or ()
            return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

        await eventually("KEDA follows the pool", followed)
        assert (await harness.pool())["spec"]["replicas"] == 0
        run = harness.announce(3 * PROGRAMS_A_JUDGE)
        await eventually("three judges for what is announced", ready_count(3, harness))
        harness.board.withdraw(run)
        await eventually("no judge", ready_count(0, harness))
