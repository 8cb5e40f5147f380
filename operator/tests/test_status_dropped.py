"""An operator newer than the CRDs: what the API server drops of a status is noticed, said once, and does no harm."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from pool_harness import NAME, field_in
from pool_passes import Harness
from prometheus_client import REGISTRY
from released_crds import before_the_upgrade, current, serve
from run_harness import API, KEY, running_controller
from waits import eventually

from deepcoder_contracts.judge import EXIT_REFUSED
from deepcoder_operator.controllers.reconcile import SHORTEST_PAUSE_SECONDS, Memory
from deepcoder_operator.domain.pool_status import JUDGES_REFUSE
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.dropped_fields import FORGOTTEN_SECONDS, DroppedFields
from deepcoder_operator.kube.resources import POOLS, Resource
from deepcoder_operator.sandbox.reconciler import KEPT_AGAIN_SECONDS

OLD = frozenset({"refusedTemplateHash", "avoidedNodes"})
"""What the release before does not know of a pool's status."""
REFUSES = {
    "containerStatuses": [
        {"name": "judge", "ready": False, "restartCount": 2, "state": {"terminated": {"exitCode": EXIT_REFUSED}}}
    ]
}


def of_the_release_before(status: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in status.items() if k not in OLD}


def without_messages(status: dict[str, Any]) -> dict[str, Any]:
    """As if the CRD knew avoided nodes, and not yet what is said of one."""
    nodes = [{k: v for k, v in node.items() if k != "message"} for node in status["avoidedNodes"]]
    return status | {"avoidedNodes": nodes}


@pytest.fixture
def kind() -> Resource:
    """A kind of the test's own: others' gauges are not touched."""
    return Resource("", "v1", "things", f"Kind{uuid.uuid4().hex[:6]}")


def gauge(kind: str) -> float | None:
    return REGISTRY.get_sample_value("deepcoder_operator_status_dropped_fields", {"kind": kind})


def test_fields_that_are_gone_are_found_at_any_depth_and_said_once(kind: Resource) -> None:
    dropped = DroppedFields(kind)
    wrote = {"a": 1, "deep": {"b": "", "c": [{"d": 1, "e": 2}, {"d": 3}]}, "empty": {}}
    assert dropped.compare(wrote, wrote | {"more": 1}) == ({}, "")
    assert gauge(kind.kind) == 0
    stored = {"deep": {"b": "", "c": [{"d": 1}, {"d": 3}]}, "empty": {}}
    lost, told = dropped.compare(wrote, stored)
    assert lost == {"a": 1, "deep": wrote["deep"]}, "whole, to be remembered in their place"
    assert f"drops status.a, status.deep.c[].e of a {kind.kind}" in told
    assert "upgrade the CRDs" in told
    assert gauge(kind.kind) == 2
    assert dropped.compare(wrote, stored) == (lost, "")
    assert dropped.compare({"a": 1}, {}) == ({"a": 1}, ""), "what was not written is not known to be kept"
    assert gauge(kind.kind) == 2
    assert dropped.compare(wrote, wrote) == ({}, "")
    assert gauge(kind.kind) == 0


def test_field_that_nothing_writes_any_more_is_told_of_for_an_hour_and_anew_if_it_is_dropped_again(
    kind: Resource,
) -> None:
    """What a run has lost is not written again, and so never seen to be kept; nor is what was a deleted pool's."""
    now = 0.0
    dropped = DroppedFields(kind, lambda: now)
    assert "status.always, status.once of" in dropped.compare({"once": 1, "always": 1}, {})[1]
    now = FORGOTTEN_SECONDS - 1
    assert dropped.compare({"always": 1}, {}) == ({"always": 1}, "")
    assert gauge(kind.kind) == 2
    now += 1
    assert gauge(kind.kind) == 1, "the alert ends by itself"
    assert dropped.compare({"always": 1}, {}) == ({"always": 1}, ""), "of what is dropped all along once is enough"
    assert "status.once of" in dropped.compare({"once": 1}, {})[1]
    assert gauge(kind.kind) == 2


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (of_the_release_before, "status.avoidedNodes, status.refusedTemplateHash of a SandboxPool"),
        (without_messages, "status.avoidedNodes[].message of a SandboxPool"),
    ],
)
async def test_pool_remembers_what_the_api_server_drops_says_so_once_and_writes_no_more_for_it(
    known: Callable[[dict[str, Any]], dict[str, Any]], said: str
) -> None:
    """Judges that refuse would be forgotten with the last of their pods, and runs ask for GPUs to find it out again."""
    harness = Harness()
    harness.api.quota, harness.api.known = 2, known
    harness.edit(minReplicas=1, maxReplicas=1, scaling={"stabilizationSeconds": 0})
    await harness.passes(2)
    (judge,) = harness.live()
    judge["spec"]["nodeName"] = "bad"
    harness.change(judge, REFUSES)
    await harness.passes(2)
    assert harness.said("Ready") == ("False", JUDGES_REFUSE)
    harness.edit(minReplicas=0, maxReplicas=1, scaling={"stabilizationSeconds": 0})
    await harness.passes(5)
    assert harness.live() == []
    assert harness.said("Ready") == ("False", JUDGES_REFUSE)
    writes = harness.api.writes
    await harness.passes(int(KEPT_AGAIN_SECONDS) - 10)
    assert harness.api.writes == writes
    (told,) = [message for reason, message in harness.events if reason == "StatusFieldsDropped"]
    assert said in told
    harness.api.known = lambda status: status
    await harness.passes(20)
    (node,) = harness.pool["status"]["avoidedNodes"]
    assert node["message"], "is known again when the CRDs have been upgraded"


async def test_what_was_dropped_is_kept_soon_after_the_crds_have_been_upgraded() -> None:
    harness = Harness()
    harness.api.quota, harness.api.known = 1, of_the_release_before
    harness.edit(minReplicas=1, maxReplicas=1)
    await harness.passes(2)
    assert not OLD & harness.pool["status"].keys()
    harness.api.known = lambda status: status
    await harness.passes(int(KEPT_AGAIN_SECONDS) + 1)
    assert harness.pool["status"].keys() >= OLD
    writes = harness.api.writes
    await harness.passes(int(KEPT_AGAIN_SECONDS) + 1)
    assert harness.api.writes == writes, "nothing is dropped any more"


@pytest.mark.parametrize("field", ["provenance", "attempt"])
async def test_run_whose_status_is_not_kept_whole_says_so_once_and_is_looked_at_in_no_hot_loop(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was dropped may be decided anew at each look."""
    put = API.replace_status

    async def drop(api: API, obj: dict[str, Any]) -> dict[str, Any]:
        return await put(api, obj | {"status": {k: v for k, v in obj["status"].items() if k != field}})

    monkeypatch.setattr(API, "replace_status", drop)
    async with running_controller() as harness:
        memory = Memory(harness.api.stored or {})
        waits = [await harness.controller._reconciler.reconcile(KEY, memory) for _ in range(5)]
    assert min(waits) >= SHORTEST_PAUSE_SECONDS
    assert len(harness.api.writes) == (5 if field == "attempt" else 1)
    assert harness.events.count("StatusFieldsDropped") == 1


@pytest.mark.apiserver
async def test_crds_of_the_release_before_are_noticed_at_the_first_write_and_their_upgrade_with_it(
    kube: Kube, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepcoder_operator.sandbox.reconciler.KEPT_AGAIN_SECONDS", 0.5)
    async with before_the_upgrade(kube, namespace), field_in(kube, namespace) as harness:
        await harness.create()

        async def drops() -> bool:
            patch = {"status": {"refusedTemplateHash": "0"}}
            return "refusedTemplateHash" not in (await kube.patch(POOLS, namespace, NAME, patch, "status"))["status"]

        await eventually("the older definition of pools", drops)
        async with harness.controller():

            async def told() -> bool:
                return any(reason == "StatusFieldsDropped" for reason, _ in harness.events)

            await eventually("the event", told)
            assert not OLD & (await harness.pool())["status"].keys()
            await serve(kube, namespace, current(), newer=True)

            async def kept() -> bool:
                return (await harness.pool())["status"].keys() >= OLD

            await eventually("the fields in the status", kept)

            async def over() -> bool:
                return gauge(POOLS.kind) == 0

            await eventually("the gauge", over)  # set by the answer to the write, which the status may precede
    (said,) = [message for reason, message in harness.events if reason == "StatusFieldsDropped"]
    assert "refusedTemplateHash" in said
