"""Judges that do not start, against a real API server: they move off their node, and are tried when somebody waits.

The test plays the scheduler and the kubelet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pool_harness import NAME, Field, eventually, field_in, ready_count

from deepcoder_contracts.judge import EXIT_REFUSED
from deepcoder_contracts.progress import ProgressReply
from deepcoder_operator.domain.pool_status import JUDGES_REFUSE
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import PODS
from deepcoder_operator.progress_board import RunKey

pytestmark = pytest.mark.apiserver
WORDS = "deepcoder-sandbox: the kernel has no Landlock: use another node"


@pytest.fixture
async def ground(kube: Kube, namespace: str) -> AsyncIterator[Field]:
    async with field_in(kube, namespace) as made:
        made.kubelet_works = False
        yield made


async def bind(ground: Field, pod: dict[str, Any], node: str) -> None:
    """The scheduler finds a node."""
    name = pod["metadata"]["name"]
    target = {"apiVersion": "v1", "kind": "Node", "name": node}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
    await ground.kube.post(PODS.path(ground.namespace, name, "binding"), binding)


async def say(ground: Field, pod: dict[str, Any], *, ready: bool) -> None:
    """The kubelet tells that a judge serves, or that it has refused to start three times."""
    ended = {"terminated": {"exitCode": EXIT_REFUSED, "reason": "Error", "message": WORDS}}
    container = {"name": "judge", "image": "", "imageID": "", "ready": ready, "restartCount": 2}
    told = {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        "containerStatuses": [container | ({} if ready else {"state": ended, "lastState": ended})],
    } | ({"podIP": "127.0.1.1", "podIPs": [{"ip": "127.0.1.1"}]} if ready else {})
    await ground.kube.patch(PODS, ground.namespace, pod["metadata"]["name"], {"status": told}, "status")


async def pods_of(ground: Field, count: int) -> list[dict[str, Any]]:
    async def there() -> bool:
        return len(await ground.pods()) == count

    await eventually(f"{count} judges", there)
    return await ground.pods()


async def test_judge_that_refuses_on_one_node_is_made_anew_off_it_and_the_pool_says_so(ground: Field) -> None:
    await ground.create(minReplicas=2)
    async with ground.controller():
        well, bad = await pods_of(ground, 2)
        for pod, node in ((well, "well"), (bad, "bad")):
            await bind(ground, pod, node)
        await say(ground, well, ready=True)
        await say(ground, bad, ready=False)

        async def moved() -> bool:
            names = {p["metadata"]["name"] for p in await ground.pods()}
            return len(names) == 2 and bad["metadata"]["name"] not in names

        await eventually("another judge in its place", moved)
        (new,) = [p for p in await ground.pods() if p["metadata"]["name"] != well["metadata"]["name"]]
        required = new["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        off = {"key": "metadata.name", "operator": "NotIn", "values": ["bad"]}
        assert required == {"nodeSelectorTerms": [{"matchFields": [off]}]}

        async def told() -> bool:
            return bool((await ground.pool())["status"].get("avoidedNodes"))

        await eventually("the node in the status", told)
        (node,) = (await ground.pool())["status"]["avoidedNodes"]
        assert node["name"] == "bad"
        assert WORDS in node["message"]
    (event,) = [message for reason, message in ground.events if reason == "JudgeMoved"]
    assert f"deleted judge {bad['metadata']['name']}, which does not start on node bad" in event
    assert WORDS in event


async def test_pool_at_zero_that_no_judge_could_start_for_tries_one_when_a_run_waits_and_is_ready_when_it_starts(
    ground: Field,
) -> None:
    run = RunKey(ground.namespace, "demo")

    async def refuses() -> bool:
        return (await ground.condition("Ready")).get("reason") == JUDGES_REFUSE

    await ground.create(minReplicas=0)
    async with ground.controller():
        ground.board.post(run, run_uid="u", ordinal=1, reply=ProgressReply(), pool=NAME, head_uid="head")
        (judge,) = await pods_of(ground, 1)
        await say(ground, judge, ready=False)
        await eventually("the refusal in the status", refuses)
        ground.board.withdraw(run)
        await eventually("no judge, which nobody wants", ready_count(0, ground))
        assert await refuses(), "else another run would ask for GPUs to find it out"
        assert WORDS in (await ground.condition("Ready"))["message"]
        ground.board.wait(run, NAME)
        (judge,) = await pods_of(ground, 1)
        assert await refuses(), "nothing is known of it yet"
        await say(ground, judge, ready=True)
        await eventually("the pool to be ready", ready_count(1, ground))
        assert (await ground.condition("Ready"))["status"] == "True"
        ground.board.withdraw(run)
        await eventually("no judge again", ready_count(0, ground))
        assert (await ground.condition("Ready"))["reason"] == "Idle"
