"""Runs in a queue of a real Kueue on the real cluster: one waits for quota, one is evicted, saves and continues later.

Kueue runs as a process next to the cluster's API server, as in the operator's own tests; here KubeRay, the kubelet and
the trainer are real, too. The test installs what Kueue needs, and removes it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kueue_server
import pytest
from e2e_world import TIMEOUT, World, wait_until
from kueue_server import CLUSTER_QUEUES, FLAVORS, LOCAL_QUEUES, PRIORITIES, WORKLOADS

from deepcoder_contracts import layout
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import CRDS, Resource

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(1800)]

QUEUE = "e2e-team"
START_SECONDS = 420
CPUS = "300m"
"""The cores of the three pods of one small run."""


@dataclass(frozen=True)
class Queue:
    """A queue with room for one run."""

    world: World

    def objects(self, resource: Resource, namespace: str | None = None) -> list[dict[str, Any]]:
        api, at = self.world.objects, (resource.group, resource.version)
        found = (
            api.list_namespaced_custom_object(*at, namespace, resource.plural, _request_timeout=TIMEOUT)
            if namespace
            else api.list_cluster_custom_object(*at, resource.plural, _request_timeout=TIMEOUT)
        )
        return list(found["items"])

    def used(self) -> str:
        """Number of cores that runs hold."""
        (queue,) = [q for q in self.objects(CLUSTER_QUEUES) if q["metadata"]["name"] == QUEUE]
        flavors = (queue.get("status") or {}).get("flavorsUsage") or []
        return next((str(r["total"]) for f in flavors for r in f["resources"] if r["name"] == "cpu"), "0")

    def is_free(self) -> bool:
        return self.used() == "0" and not self.objects(WORKLOADS, self.world.namespace)


@pytest.fixture
async def queue(
    world: World, tmp_path: Path, unused_tcp_port_factory: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Queue]:
    built = kueue_server.built()
    if built is None:
        pytest.skip("Kueue has not been built: run `python -m devcluster build --with kueue`")
    monkeypatch.setenv("KUBECONFIG", world.cluster.kubeconfig)
    kube = await Kube.connect()
    ports = [unused_tcp_port_factory() for _ in range(4)]
    try:
        async with kueue_server.running(kube, Path(world.cluster.kubeconfig), tmp_path, built, ports):
            made: list[tuple[Resource, str, str | None]] = []
            try:
                for resource, obj in _objects(world.namespace):
                    namespace = obj["metadata"].get("namespace")
                    await kueue_server.create(kube, resource, obj, namespace)
                    made.append((resource, obj["metadata"]["name"], namespace))
                yield Queue(world)
            finally:
                for resource, name, namespace in reversed(made):
                    await kube.delete(resource, namespace, name)
                left = Queue(world)
                wait_until("it lets go", lambda: not left.objects(CLUSTER_QUEUES) + left.objects(FLAVORS), 60)
    finally:
        for crd in (await kube.list(CRDS))[0]:
            if crd["spec"]["group"] == CLUSTER_QUEUES.group:
                await kube.delete(CRDS, None, crd["metadata"]["name"])
        await kube.close()


def _objects(namespace: str) -> list[tuple[Resource, dict[str, Any]]]:
    resources = [{"name": "cpu", "nominalQuota": CPUS}, {"name": "memory", "nominalQuota": "100Gi"}]
    group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": QUEUE, "resources": resources}]}
    spec = {"namespaceSelector": {}, "resourceGroups": [group], "preemption": {"withinClusterQueue": "LowerPriority"}}
    return [
        (PRIORITIES, {"metadata": {"name": f"{QUEUE}-low"}, "value": 1, "description": "a test's"}),
        (PRIORITIES, {"metadata": {"name": f"{QUEUE}-high"}, "value": 10, "description": "a test's"}),
        (FLAVORS, {"metadata": {"name": QUEUE}}),
        (CLUSTER_QUEUES, {"metadata": {"name": QUEUE}, "spec": spec}),
        (LOCAL_QUEUES, {"metadata": {"name": "team", "namespace": namespace}, "spec": {"clusterQueue": QUEUE}}),
    ]


def reserved(status: dict[str, Any]) -> str:
    found = next((c for c in status.get("conditions", []) if c["type"] == "QuotaReserved"), {})
    return str(found.get("status", ""))


async def test_run_waits_for_quota_is_evicted_for_a_higher_priority_and_goes_on_from_what_it_saved(
    world: World, queue: Queue, start_run: Callable[..., str]
) -> None:
    def queued(priority: str) -> Callable[[dict[str, Any]], None]:
        def change(manifest: dict[str, Any]) -> None:
            manifest["spec"]["checkpoint"].update(everySteps=5)
            manifest["spec"]["scheduling"] = {"queueName": "team", "priorityClassName": f"{QUEUE}-{priority}"}

        return change

    low = start_run("e2e-queue-low", steps=200, change=queued("low"))
    saved = world.wait_for(low, "a checkpoint", lambda s: s.get("latestCheckpoint"), START_SECONDS)
    assert reserved(world.status(low)) == "True"
    wait_until("its quota is counted", lambda: queue.used() == CPUS, 60, queue.used)

    same = start_run("e2e-queue-same", steps=2, change=queued("low"))
    world.wait_for(same, "it waits for quota", lambda s: s.get("phase") == "Queued" and s.get("attempt"), 60)
    assert reserved(world.status(same)) == "False"
    assert world.pods(same) == [], "nothing runs without quota"
    world.delete(same)
    world.wait_gone(same, 120)

    high = start_run("e2e-queue-high", steps=2, change=queued("high"))
    status = world.wait_for(low, "it queues anew", lambda s: s if s.get("ordinal", 0) >= 2 else None, 240)
    assert status["stages"][0].get("failures", 0) == 0, "an eviction is no failure"
    assert status["stages"][0].get("preemptions", 0) == 1
    ending = world.stored(low, layout.exit_key("short", 1))
    assert ending is not None, "it left without a word"
    assert ending["code"] == 75
    assert ending["step"] >= saved["step"]
    assert status["latestCheckpoint"]["step"] >= ending["step"], "what it saved while it drained"
    made = world.stored(low, f"{layout.checkpoint_dir('short', ending['step'], 1)}/MANIFEST.json")
    assert made is not None
    assert "sha256:" in made["imageId"], "the operator tells an attempt the digest of its image"

    world.wait_for_phase(high, "Complete", START_SECONDS)
    again = world.wait_for(
        low, "a checkpoint of attempt 2", lambda s: s if s["latestCheckpoint"]["ordinal"] == 2 else None, START_SECONDS
    )
    assert again["latestCheckpoint"]["step"] > ending["step"]
    assert reserved(again) == "True"
    for name in (high, low):
        world.delete(name)
        world.wait_gone(name, 240)
    wait_until("all quota is back", queue.is_free, 120, queue.used)
