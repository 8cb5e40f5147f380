"""Judges that do not start, against a real API server: they move off their node, and are tried when somebody waits.

The test plays the scheduler and the kubelet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pool_harness import NAME, Field, field_in, ready_count
from waits import eventually

from deepcoder_contracts.judge import EXIT_REFUSED
from deepcoder_contracts.progress import ProgressReply
from deepcoder_operator.domain.pool_status import JUDGES_REFUSE
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import PODS
from deepcoder_operator.progress_board import RunKey

pytestmark = pytest.mark.apiserver
WORDS = "deepcoder-sandbox: the kernel has no Landlock: use another node"


@pytest.fixture
async def harness(kube: Kube, namespace: str) -> AsyncIterator[Field]:
    async with field_in(kube, namespace) as made:
        made.kubelet_works = False
        yield made


async def bind(harness: Field, pod: dict[str, Any], node: str) -> None:
    """The scheduler finds a node."""
    name = pod["metadata"]["name"]
    target = {"apiVersion": "v1", "kind": "Node", "name": node}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
    await harness.kube.post(PODS.path(harness.namespace, name, "binding"), binding)


async def say(harness: Field, pod: dict[str, Any], *, ready: bool) -> None:
    """The kubelet tells that a judge serves, or that it has refused to start three times."""
    ended = {"terminated": {"exitCode": EXIT_REFUSED, "reason": "Error", "message": WORDS}}
    container = {"name": "judge", "image": "", "imageID": "", "ready": ready, "restartCount": 2}
    told = {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        "containerStatuses": [container | ({} if ready else {"state": ended, "lastState": ended})],
    } | ({"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]} if ready else {})
    await harness.kube.patch(PODS, harness.namespace, pod["metadata"]["name"], {"status": told}, "status")


async def pods_of(harness: Field, count: int) -> list[dict[str, Any]]:
    async def there() -> bool:
        return len(await harness.pods()) == count

    await eventually(f"{count} judges", there)
    return await harness.pods()


async def test_judge_that_refuses_on_one_node_is_made_anew_off_it_and_the_pool_says_so(harness: Field) -> None:
    await harness.create(minReplicas=2)
    async with harness.controller():
        well, bad = await pods_of(harness, 2)
        for pod, node in ((well, "well"), (bad, "bad")):
            await bind(harness, pod, node)
        await say(harness, well, ready=True)
        await say(harness, bad, ready=False)

        async def moved() -> bool:
            names = {p["metadata"]["name"] for p in await harness.pods()}
            return len(names) == 2 and bad["metadata"]["name"] not in names

        await eventually("another judge in its place", moved)
        (new,) = [p for p in await harness.pods() if p["metadata"]["name"] != well["metadata"]["name"]]
        required = new["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        off = {"key": "metadata.name", "operator": "NotIn", "values": ["bad"]}
        assert required == {"nodeSelectorTerms": [{"matchFields": [off]}]}

        async def told() -> bool:
            return bool((await harness.pool())["status"].get("avoidedNodes"))

        await eventually("the node in the status", told)
        (node,) = (await harness.pool())["status"]["avoidedNodes"]
        assert node["name"] == "bad"
        assert WORDS in node["message"]
    (event,) = [message for reason, message in harness.events if reason == "JudgeMoved"]
    assert f"deleted judge {bad['metadata']['name']}, which does not start on node bad" in event
    assert WORDS in event


async def test_pool_at_zero_that_no_judge_could_start_for_tries_one_when_a_run_waits_and_is_ready_when_it_starts(
    harness: Field,
) -> None:
    run = RunKey(harness.namespace, "demo")

    async def refuses() -> bool:
        return (await harness.condition("Ready")).get("reason") == JUDGES_REFUSE

    await harness.create(minReplicas=0)
    async with harness.controller():
        harness.board.post(run, run_uid="u", ordinal=1, reply=ProgressReply(), pool=NAME, head_uid="head")
        (judge,) = await pods_of(harness, 1)
        await say(harness, judge, ready=False)
        await eventually("the refusal in the status", refuses)
        harness.board.withdraw(run)
        await eventually("no judge, which nobody wants", ready_count(0, harness))
        assert await refuses(), "else another run would ask for GPUs to find it out"
        assert WORDS in (await harness.condition("Ready"))["message"]
        harness.board.wait(run, NAME)
        (judge,) = await pods_of(harness, 1)
        assert await refuses(), "nothing is known of it yet"
        await say(harness, judge, ready=True)
        await eventually("the pool to be ready", ready_count(1, harness))
        assert (await harness.condition("Ready"))["status"] == "True"
        harness.board.withdraw(run)
        await eventually("no judge again", ready_count(0, harness))
        assert (await harness.condition("Ready"))["reason"] == "Idle"
