"""Runs in a queue of a real Kueue: they wait for quota, give it up when they are evicted, and always give it back."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import kueue_server
import pytest
from kueue_server import CLUSTER_QUEUES, FLAVORS, LOCAL_QUEUES, PRIORITIES, WORKLOADS
from loop_world import Cluster, wait_for
from operator_lives import kept_alive
from run_manifests import TRAIN

from deepcoder_operator.kube.client import Object
from deepcoder_operator.kube.resources import PODS, RAYJOBS

pytestmark = [pytest.mark.apiserver, pytest.mark.s3, pytest.mark.root, pytest.mark.long]

ROLES = {"head": "ray-head", "samplers": "ray-worker", "learners": "ray-worker"}
GROUPS = {
    role: {"template": {"spec": {"containers": [{"name": name, "resources": {"requests": {"cpu": "1"}}}]}}}
    for role, name in ROLES.items()
}
STAGE = TRAIN | {"resources": GROUPS}
"""Three pods of one core each."""


@dataclass
class Queue:
    """A ClusterQueue of the test's own, with room for one run."""

    site: Cluster
    name: str

    async def used(self) -> str:
        """Cores that its runs hold."""
        found = await self.site.kube.get(CLUSTER_QUEUES, None, self.name)
        flavors = (found.get("status") or {}).get("flavorsUsage") or []
        return next((str(r["total"]) for f in flavors for r in f["resources"] if r["name"] == "cpu"), "0")

    async def full(self) -> bool:
        """Whether no other run fits."""
        return await self.used() == "3"

    async def free(self) -> None:
        """Wait until all quota is back and no workload is left."""

        async def holds() -> bool:
            workloads, _ = await self.site.kube.list(WORKLOADS, self.site.namespace)
            return await self.used() == "0" and not workloads

        await wait_for("the quota is given back", holds)

    def run(self, name: str) -> Cluster:
        """A run's view of the namespace."""
        return replace(self.site, name=name)

    async def submit(self, name: str, priority: str) -> Cluster:
        """Create a run in the queue."""
        run = self.run(name)
        scheduling = {"queueName": "team", "priorityClassName": f"{self.name}-{priority}"}
        pause = {"backoff": {"initialSeconds": 0}}
        await run.create_run(
            stages=[STAGE], scheduling=scheduling, failurePolicy=pause, checkpoint={"drainSeconds": 30}
        )
        return run


NOT_READY_SECONDS = 3
"""Time that Kueue gives the pods of an attempt, where it gives them a bounded one."""


@pytest.fixture
async def queue(
    request: pytest.FixtureRequest,
    site: Cluster,
    kubeconfig: Path,
    tmp_path: Path,
    unused_tcp_port_factory: Callable[[], int],
) -> AsyncIterator[Queue]:
    built = kueue_server.built()
    if built is None:
        pytest.skip("Kueue has not been built: run `python -m devcluster build --with kueue`")
    ports = [unused_tcp_port_factory() for _ in range(4)]
    kube, name = site.kube, f"q-{uuid.uuid4().hex[:8]}"
    more = getattr(request, "param", {})
    async with kueue_server.running(kube, kubeconfig, tmp_path, built, ports, **more), kept_alive(site):
        for priority, value in (("low", 1), ("high", 10)):
            await kueue_server.create(
                kube, PRIORITIES, {"metadata": {"name": f"{name}-{priority}"}, "value": value, "description": "a test"}
            )
        await kueue_server.create(kube, FLAVORS, {"metadata": {"name": name}})
        resources = [{"name": "cpu", "nominalQuota": "3"}, {"name": "memory", "nominalQuota": "1Ti"}]
        quota = {"name": name, "resources": resources}
        spec: dict[str, Any] = {
            "namespaceSelector": {},
            "resourceGroups": [{"coveredResources": ["cpu", "memory"], "flavors": [quota]}],
            "preemption": {"withinClusterQueue": "LowerPriority"},
        }
        await kueue_server.create(kube, CLUSTER_QUEUES, {"metadata": {"name": name}, "spec": spec})
        local = {"metadata": {"name": "team", "namespace": site.namespace}, "spec": {"clusterQueue": name}}
        await kueue_server.create(kube, LOCAL_QUEUES, local, site.namespace)
        try:
            yield Queue(site, name)
        finally:
            for resource, made in ((PRIORITIES, f"{name}-low"), (PRIORITIES, f"{name}-high")):
                with suppress(Exception):
                    await kube.delete(resource, None, made)


def reserved(run: Object, status: str) -> bool:
    conditions = run.get("status", {}).get("conditions", [])
    return any(c["type"] == "QuotaReserved" and c["status"] == status for c in conditions)


async def test_run_waits_for_quota_and_begins_when_another_ends(queue: Queue) -> None:
    first = await queue.submit("first", "low")
    await first.until_running("first-s0-a1")
    await wait_for("its quota is counted", queue.full)
    second = await queue.submit("second", "low")
    await second.until("it is queued", lambda run: run.get("status", {}).get("phase") == "Queued")
    await asyncio.sleep(2)
    waiting = await second.run()
    assert reserved(waiting, "False")
    assert waiting["status"]["phase"] == "Queued"
    pods, _ = await queue.site.kube.list(PODS, queue.site.namespace, "deepcoder.dev/run=second")
    assert pods == [], "nothing runs without quota"
    await first.finish("first-s0-a1")
    await first.until_phase("Complete")
    await second.until_running("second-s0-a1")
    assert reserved(await second.run(), "True")
    await second.finish("second-s0-a1")
    await second.until_phase("Complete")
    await queue.free()


async def test_eviction_drains_gives_quota_back_and_goes_on_from_what_was_saved(queue: Queue) -> None:
    queue.site.standin.node = "gpu-7"
    low = await queue.submit("low", "low")
    await low.until_running("low-s0-a1")
    await low.standin.save("low-s0-a1", 5)
    low.standin.ends_pods = False  # the trainer has its time to save
    high = await queue.submit("high", "high")
    await low.until("it drains", lambda run: run["status"]["phase"] == "Draining")
    await low.standin.save("low-s0-a1", 8)
    await low.standin.leave("low-s0-a1", 75, "Drained")
    low.standin.ends_pods = True
    await high.until_running("high-s0-a1")
    run = await low.until("it queues anew", lambda run: (run["status"].get("attempt") or {}).get("ordinal") == 2)
    assert run["status"]["latestCheckpoint"]["step"] == 8
    assert run["status"]["stages"][0].get("failures", 0) == 0, "an eviction is no failure"
    assert reserved(run, "False") or reserved(run, "Unknown")
    await high.finish("high-s0-a1")
    await high.until_phase("Complete")
    await low.until_running("low-s0-a2")
    await low.finish("low-s0-a2")
    await low.until_phase("Complete")
    jobs, _ = await queue.site.kube.list(RAYJOBS, queue.site.namespace)
    assert jobs == []
    assert sorted(queue.site.standin.seen) == ["high-s0-a1", "low-s0-a1", "low-s0-a2"]
    await queue.free()


@pytest.mark.parametrize("queue", [{"waitForPodsReady": {"timeout": f"{NOT_READY_SECONDS}s"}}], indirect=True)
async def test_attempt_whose_pods_are_not_ready_in_kueues_time_says_so(queue: Queue) -> None:
    queue.site.standin.starts = False
    run = await queue.submit("late", "low")
    told = await run.until(
        "its next attempt", lambda run: ((run.get("status") or {}).get("attempt") or {}).get("ordinal", 0) > 1
    )
    stage = told["status"]["stages"][0]
    assert "PreRunningDeadlineExceeded" in stage["message"]
    assert "Exceeded the PodsReady timeout" in stage["message"]
    assert (stage.get("failures", 0), stage.get("preemptions", 0)) == (0, 0)
