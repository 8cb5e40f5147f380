"""SandboxPools against a real API server; the test plays the kubelet and the judges' capacity endpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from pool_harness import NAME, Field, field_in, ready_count, settled
from waits import eventually

from deepcoder_contracts.progress import ProgressReply
from deepcoder_operator.controllers.pool import pool_group
from deepcoder_operator.domain import pool_status
from deepcoder_operator.domain.pool_names import LABEL_POOL, LABEL_TEMPLATE_HASH
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.informer import Informer
from deepcoder_operator.kube.resources import (
    DISRUPTION_BUDGETS,
    NETWORK_POLICIES,
    PODS,
    POOLS,
    SECRETS,
    SERVICES,
    Resource,
)
from deepcoder_operator.progress_board import RunKey
from deepcoder_operator.sandbox import tokens

pytestmark = pytest.mark.apiserver


@pytest.fixture
async def harness(kube: Kube, namespace: str) -> AsyncIterator[Field]:
    async with field_in(kube, namespace) as made:
        yield made


async def test_pool_comes_up_with_all_that_surrounds_it(harness: Field) -> None:
    await harness.create(minReplicas=2)
    async with harness.controller():
        await eventually("two ready judges", ready_count(2, harness))
    ns = harness.namespace
    assert (await harness.kube.get(SERVICES, ns, "judges-judge"))["spec"]["clusterIP"] == "None"
    assert (await harness.kube.get(NETWORK_POLICIES, ns, "judges-judge"))["spec"]["policyTypes"] == [
        "Ingress",
        "Egress",
    ]
    assert await harness.kube.get(DISRUPTION_BUDGETS, ns, "judges-judge")
    assert len(harness.judges.token) > 30
    assert (await harness.condition("Ready"))["status"] == "True"
    assert (await harness.condition("Accepted"))["status"] == "True"
    status = (await harness.pool())["status"]
    assert (status["desiredReplicas"], status["selector"]) == (2, f"{LABEL_POOL}={NAME}")
    assert ("JudgesCreated", "judges created: 2, wanted: 2") in harness.events


async def test_pool_grows_with_the_queue_and_idle_judges_go_first(harness: Field) -> None:
    await harness.create()
    async with harness.controller():
        await eventually("one ready judge", ready_count(1, harness))
        (first,) = await harness.pods()
        harness.judges.load[first["status"]["podIP"]] = (2, 9)
        await eventually("three judges for eleven programs", ready_count(3, harness))
        harness.judges.load[first["status"]["podIP"]] = (2, 1)
        await eventually("one judge for three programs", ready_count(1, harness))
        (left,) = await harness.pods()
        assert left["metadata"]["uid"] == first["metadata"]["uid"]
        status = (await harness.pool())["status"]
        assert status["slots"] == 2


async def test_pool_grows_where_a_program_waits_too_long_though_the_queue_is_short(
    harness: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And stays so, though the judge that has come has nothing to do: without it the pool would go up and down."""
    monkeypatch.setattr(pool_status, "LOAD_WRITE_SECONDS", 0.0)
    await harness.create(scaling={"targetWaitSeconds": 10})
    async with harness.controller() as controller:
        await eventually("one ready judge", ready_count(1, harness))
        (first,) = await harness.pods()
        harness.judges.load[first["status"]["podIP"]] = (2, 1)
        harness.judges.oldest_wait = 25.0
        await eventually("two judges for three programs", settled(2, harness))

        async def told() -> bool:
            return bool((await harness.pool())["status"].get("longestWaitSeconds") == 25)

        await eventually("the wait in the status", told)
        for _ in range(3):
            with suppress(errors.Conflict):  # the controller's own pass wrote first
                await controller._reconciler.reconcile(await harness.pool())
        assert "ScaledDown" not in dict(harness.events)


async def test_pool_stays_within_its_maximum_and_says_so(harness: Field) -> None:
    await harness.create(maxReplicas=2)
    harness.announce(1000)
    async with harness.controller():
        await eventually("two judges", ready_count(2, harness))

        async def at_maximum() -> bool:
            return (await harness.condition("Scaling")).get("reason") == "AtMaximum"

        await eventually("the condition that names the bound", at_maximum)
    assert len(await harness.pods()) == 2


async def test_announced_programs_wake_the_pool_before_they_arrive(harness: Field) -> None:
    await harness.create()
    async with harness.controller() as controller:
        await eventually("one ready judge", ready_count(1, harness))
        controller.report_received(harness.announce(12))
        await eventually("three judges for twelve announced programs", ready_count(3, harness))


async def test_pool_at_zero_wakes_for_an_attempt_that_announces_nothing(harness: Field) -> None:
    """An evaluation judges as it goes: without a judge no queue would ever tell that one is wanted."""
    await harness.create(minReplicas=0)
    async with harness.controller():
        await eventually("no judge", ready_count(0, harness))
        run = RunKey(harness.namespace, "demo")
        harness.board.post(run, run_uid="u", ordinal=1, reply=ProgressReply(), pool=NAME, head_uid="head")
        await eventually("a judge for the attempt", ready_count(1, harness))
        harness.board.withdraw(run)
        await eventually("no judge without an attempt", ready_count(0, harness))


async def test_silent_judges_do_not_shrink_the_pool(harness: Field) -> None:
    await harness.create()
    async with harness.controller():
        await eventually("one ready judge", ready_count(1, harness))
        (first,) = await harness.pods()
        harness.judges.load[first["status"]["podIP"]] = (2, 9)
        await eventually("three judges", ready_count(3, harness))
    harness.judges.silent = True
    async with harness.controller() as controller:
        for _ in range(3):
            with suppress(errors.Conflict):  # the controller's own pass wrote first
                await controller._reconciler.reconcile(await harness.pool())
        assert len(await harness.pods()) == 3


async def test_stale_cache_never_leads_to_pods_too_many(harness: Field) -> None:
    """The informer is never run, so the cache stays empty: every pass believes that there is no pod."""
    harness.kubelet_works = False

    async def blind_pass() -> list[str]:
        blind = Informer(harness.kube, PODS, LABEL_POOL, lambda _: None, index=pool_group)
        reconciler = harness.reconciler(blind)

        async def passed() -> bool:
            with suppress(errors.Conflict):  # the disruption budget's controller wrote first
                await reconciler.reconcile(await harness.pool())
                return True
            return False

        try:
            await eventually("a pass that meets no other's write", passed)
        finally:
            await reconciler.close()
        return [p["metadata"]["name"] for p in await harness.pods()]

    await harness.create(minReplicas=4)
    names = await blind_pass()
    assert len(names) == 4
    # Now the lowest index is free, and nothing but a look at the API server shows that the others are taken.
    await harness.kube.delete(PODS, harness.namespace, names[0], grace_seconds=0)
    await harness.kube.patch(POOLS, harness.namespace, NAME, {"spec": {"minReplicas": 3}})
    for _ in range(3):
        assert await blind_pass() == names[1:]


async def test_restarted_controller_keeps_what_is_there(harness: Field) -> None:
    await harness.create(minReplicas=2)
    async with harness.controller():
        await eventually("two ready judges", ready_count(2, harness))
    before = {p["metadata"]["uid"] for p in await harness.pods()}
    async with harness.controller() as controller:
        with suppress(errors.Conflict):  # the controller's own pass wrote first
            await controller._reconciler.reconcile(await harness.pool())
        assert {p["metadata"]["uid"] for p in await harness.pods()} == before


async def test_failed_judge_is_replaced(harness: Field) -> None:
    await harness.create()
    async with harness.controller():
        await eventually("one ready judge", ready_count(1, harness))
        (first,) = await harness.pods()
        full = "The node was low on resource: ephemeral-storage."
        killed = {"name": "judge", "ready": False, "state": {"terminated": {"exitCode": 137}}}
        evicted = {"reason": "Evicted", "message": full, "conditions": [], "containerStatuses": [killed]}
        failed = {"status": {"phase": "Failed", **evicted}}
        await harness.kube.patch(PODS, harness.namespace, first["metadata"]["name"], failed, "status")

        async def replaced() -> bool:
            pods = await harness.pods()
            return len(pods) == 1 and pods[0]["metadata"]["uid"] != first["metadata"]["uid"]

        await eventually("another judge in its place", replaced)
    (told,) = [message for reason, message in harness.events if reason == "JudgeFailed"]
    assert told.endswith(f"which has ended: Evicted: {full}"), "with the pod its log goes, and nothing else says why"


async def test_new_image_rolls_through_without_losing_the_last_judge(harness: Field) -> None:
    await harness.create()
    async with harness.controller():
        await eventually("one ready judge", ready_count(1, harness))
        (old,) = await harness.pods()
        await harness.kube.patch(POOLS, harness.namespace, NAME, {"spec": {"image": "sandbox:2"}})
        least = 1

        async def rolled() -> bool:
            nonlocal least
            pods = await harness.pods()
            least = min(least, sum(p.get("status", {}).get("phase") == "Running" for p in pods))
            images = [p["spec"]["containers"][0]["image"] for p in pods]
            return images == ["sandbox:2"]

        await eventually("a judge of the new image alone", rolled)
        assert least == 1
        (new,) = await harness.pods()
        assert new["metadata"]["labels"][LABEL_TEMPLATE_HASH] != old["metadata"]["labels"][LABEL_TEMPLATE_HASH]


async def test_external_mode_obeys_the_scale_subresource(harness: Field) -> None:
    await harness.create(scaling={"mode": "External"}, replicas=1)
    harness.announce(1000)
    async with harness.controller():
        await eventually("one ready judge", ready_count(1, harness))
        await harness.kube.patch(POOLS, harness.namespace, NAME, {"spec": {"replicas": 4}}, "scale")
        await eventually("four judges", ready_count(4, harness))
        await harness.kube.patch(POOLS, harness.namespace, NAME, {"spec": {"replicas": 0}}, "scale")
        await eventually("no judge", ready_count(0, harness))
        spec = (await harness.pool())["spec"]
        assert (spec["replicas"], spec["minReplicas"]) == (0, 1)


async def test_foreign_object_of_our_name_is_left_alone_and_named(harness: Field) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "judges-judge", "namespace": harness.namespace},
        "spec": {"ports": [{"port": 80}]},
    }
    foreign = await harness.kube.create(service)
    await harness.create()
    async with harness.controller():

        async def refused() -> bool:
            return (await harness.condition("Accepted")).get("reason") == "NameConflict"

        await eventually("the conflict in the status", refused)
    assert "Service judges-judge" in (await harness.condition("Accepted"))["message"]
    now = await harness.kube.get(SERVICES, harness.namespace, "judges-judge")
    assert now["metadata"]["resourceVersion"] == foreign["metadata"]["resourceVersion"]
    assert not await harness.pods()


async def test_forbidden_template_is_refused_in_the_status(harness: Field) -> None:
    await harness.create(template={"spec": {"hostNetwork": True}})
    async with harness.controller():

        async def refused() -> bool:
            return (await harness.condition("Accepted")).get("reason") == "InvalidTemplate"

        await eventually("the refusal in the status", refused)
    assert "spec.template.spec.hostNetwork" in (await harness.condition("Accepted"))["message"]
    assert not await harness.pods()


async def test_pods_that_admission_refuses_are_told_in_the_status(harness: Field) -> None:
    """What the operator cannot know: here the namespace allows no container as much memory as a judge asks for."""
    limit = {"type": "Container", "max": {"memory": "1Mi"}, "default": {"memory": "1Mi"}}
    meta = {"name": "small", "namespace": harness.namespace}
    limits = {"apiVersion": "v1", "kind": "LimitRange", "metadata": meta, "spec": {"limits": [limit]}}
    path = Resource("", "v1", "limitranges", "LimitRange").path(harness.namespace)
    await harness.kube.post(path, limits)
    await harness.create()
    async with harness.controller():

        async def refused() -> bool:
            return (await harness.condition("Accepted")).get("reason") == "PodRefused"

        await eventually("the refusal in the status", refused)
    assert "maximum memory usage per Container" in (await harness.condition("Accepted"))["message"]


async def test_pods_that_the_api_server_cannot_read_are_told_in_the_status(harness: Field) -> None:
    """A number that has to be in quotes is refused as no pod at all."""
    judge = {"name": "judge", "env": [{"name": "THREADS", "value": 4}]}
    await harness.create(template={"spec": {"containers": [judge]}})
    async with harness.controller():

        async def refused() -> bool:
            return (await harness.condition("Accepted")).get("reason") == "PodInvalid"

        await eventually("the refusal in the status", refused)
    assert "EnvVar" in (await harness.condition("Accepted"))["message"]


async def test_nothing_is_written_when_nothing_has_changed(harness: Field) -> None:
    await harness.create()
    async with harness.controller() as controller:
        await eventually("one ready judge", settled(1, harness))
        before = (await harness.pool())["metadata"]["resourceVersion"]
        for _ in range(5):
            await controller._reconciler.reconcile(await harness.pool())
        assert (await harness.pool())["metadata"]["resourceVersion"] == before


async def test_token_that_somebody_deletes_is_made_again_before_a_judge_has_to_wait_long_for_it(
    harness: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "CACHE_SECONDS", 0.0)
    await harness.create(minReplicas=1)
    async with harness.controller():
        await eventually("a ready judge", ready_count(1, harness))
        before = await harness.kube.get(SECRETS, harness.namespace, "judges-token")
        await harness.kube.delete(SECRETS, harness.namespace, "judges-token")

        async def made_again() -> bool:
            now = await harness.kube.find(SECRETS, harness.namespace, "judges-token")
            return now is not None and now["metadata"]["uid"] != before["metadata"]["uid"]

        await eventually("another token", made_again)


async def test_deleted_pool_takes_everything_along(harness: Field) -> None:
    await harness.create(minReplicas=2)
    async with harness.controller():
        await eventually("two ready judges", ready_count(2, harness))
        await harness.kube.delete(POOLS, harness.namespace, NAME)

        async def gone() -> bool:
            left = [
                await harness.kube.find(resource, harness.namespace, name)
                for resource, name in ((SERVICES, "judges-judge"), (SECRETS, "judges-token"))
            ]
            return not await harness.pods() and not any(left)

        await eventually("pods, Service and Secret to be collected", gone)
