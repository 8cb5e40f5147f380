"""SandboxPools against a real API server; the test plays the kubelet and the judges' capacity endpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from pool_harness import NAME, Field, eventually, field_in, ready_count, settled

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
async def ground(kube: Kube, namespace: str) -> AsyncIterator[Field]:
    async with field_in(kube, namespace) as made:
        yield made


async def test_pool_comes_up_with_all_that_surrounds_it(ground: Field) -> None:
    await ground.create(minReplicas=2)
    async with ground.controller():
        await eventually("two ready judges", ready_count(2, ground))
    ns = ground.namespace
    assert (await ground.kube.get(SERVICES, ns, "judges-judge"))["spec"]["clusterIP"] == "None"
    assert (await ground.kube.get(NETWORK_POLICIES, ns, "judges-judge"))["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert await ground.kube.get(DISRUPTION_BUDGETS, ns, "judges-judge")
    assert len(ground.judges.token) > 30
    assert (await ground.condition("Ready"))["status"] == "True"
    assert (await ground.condition("Accepted"))["status"] == "True"
    status = (await ground.pool())["status"]
    assert (status["desiredReplicas"], status["selector"]) == (2, f"{LABEL_POOL}={NAME}")
    assert ("JudgesCreated", "judges created: 2, wanted: 2") in ground.events


async def test_pool_grows_with_the_queue_and_idle_judges_go_first(ground: Field) -> None:
    await ground.create()
    async with ground.controller():
        await eventually("one ready judge", ready_count(1, ground))
        (first,) = await ground.pods()
        ground.judges.load[first["status"]["podIP"]] = (2, 9)
        await eventually("three judges for eleven programs", ready_count(3, ground))
        ground.judges.load[first["status"]["podIP"]] = (2, 1)
        await eventually("one judge for three programs", ready_count(1, ground))
        (left,) = await ground.pods()
        assert left["metadata"]["uid"] == first["metadata"]["uid"]
        status = (await ground.pool())["status"]
        assert status["slots"] == 2


async def test_pool_grows_where_a_program_waits_too_long_though_the_queue_is_short(
    ground: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And stays so, though the judge that has come has nothing to do: without it the pool would go up and down."""
    monkeypatch.setattr(pool_status, "LOAD_WRITE_SECONDS", 0.0)
    await ground.create(scaling={"targetWaitSeconds": 10})
    async with ground.controller() as controller:
        await eventually("one ready judge", ready_count(1, ground))
        (first,) = await ground.pods()
        ground.judges.load[first["status"]["podIP"]] = (2, 1)
        ground.judges.oldest_wait = 25.0
        await eventually("two judges for three programs", settled(2, ground))

        async def told() -> bool:
            return bool((await ground.pool())["status"].get("longestWaitSeconds") == 25)

        await eventually("the wait in the status", told)
        for _ in range(3):
            with suppress(errors.Conflict):  # the controller's own pass wrote first
                await controller._reconciler.reconcile(await ground.pool())
        assert "ScaledDown" not in dict(ground.events)


async def test_pool_stays_within_its_maximum_and_says_so(ground: Field) -> None:
    await ground.create(maxReplicas=2)
    ground.announce(1000)
    async with ground.controller():
        await eventually("two judges", ready_count(2, ground))

        async def at_maximum() -> bool:
            return (await ground.condition("Scaling")).get("reason") == "AtMaximum"

        await eventually("the condition that names the bound", at_maximum)
    assert len(await ground.pods()) == 2


async def test_announced_programs_wake_the_pool_before_they_arrive(ground: Field) -> None:
    await ground.create()
    async with ground.controller() as controller:
        await eventually("one ready judge", ready_count(1, ground))
        controller.report_received(ground.announce(12))
        await eventually("three judges for twelve announced programs", ready_count(3, ground))


async def test_pool_at_zero_wakes_for_an_attempt_that_announces_nothing(ground: Field) -> None:
    """An evaluation judges as it goes: without a judge no queue would ever tell that one is wanted."""
    await ground.create(minReplicas=0)
    async with ground.controller():
        await eventually("no judge", ready_count(0, ground))
        run = RunKey(ground.namespace, "demo")
        ground.board.post(run, run_uid="u", ordinal=1, reply=ProgressReply(), pool=NAME, head_uid="head")
        await eventually("a judge for the attempt", ready_count(1, ground))
        ground.board.withdraw(run)
        await eventually("no judge without an attempt", ready_count(0, ground))


async def test_silent_judges_do_not_shrink_the_pool(ground: Field) -> None:
    await ground.create()
    async with ground.controller():
        await eventually("one ready judge", ready_count(1, ground))
        (first,) = await ground.pods()
        ground.judges.load[first["status"]["podIP"]] = (2, 9)
        await eventually("three judges", ready_count(3, ground))
    ground.judges.silent = True
    async with ground.controller() as controller:
        for _ in range(3):
            with suppress(errors.Conflict):  # the controller's own pass wrote first
                await controller._reconciler.reconcile(await ground.pool())
        assert len(await ground.pods()) == 3


async def test_stale_cache_never_leads_to_pods_too_many(ground: Field) -> None:
    """The informer is never run, so the cache stays empty: every pass believes that there is no pod."""
    ground.kubelet_works = False

    async def blind_pass() -> list[str]:
        blind = Informer(ground.kube, PODS, LABEL_POOL, lambda _: None, index=pool_group)
        reconciler = ground.reconciler(blind)
        try:
            await reconciler.reconcile(await ground.pool())
        finally:
            await reconciler.close()
        return [p["metadata"]["name"] for p in await ground.pods()]

    await ground.create(minReplicas=4)
    names = await blind_pass()
    assert len(names) == 4
    # Now the lowest index is free, and nothing but a look at the API server shows that the others are taken.
    await ground.kube.delete(PODS, ground.namespace, names[0], grace_seconds=0)
    await ground.kube.patch(POOLS, ground.namespace, NAME, {"spec": {"minReplicas": 3}})
    for _ in range(3):
        assert await blind_pass() == names[1:]


async def test_restarted_controller_keeps_what_is_there(ground: Field) -> None:
    await ground.create(minReplicas=2)
    async with ground.controller():
        await eventually("two ready judges", ready_count(2, ground))
    before = {p["metadata"]["uid"] for p in await ground.pods()}
    async with ground.controller() as controller:
        with suppress(errors.Conflict):  # the controller's own pass wrote first
            await controller._reconciler.reconcile(await ground.pool())
        assert {p["metadata"]["uid"] for p in await ground.pods()} == before


async def test_failed_judge_is_replaced(ground: Field) -> None:
    await ground.create()
    async with ground.controller():
        await eventually("one ready judge", ready_count(1, ground))
        (first,) = await ground.pods()
        full = "The node was low on resource: ephemeral-storage."
        killed = {"name": "judge", "ready": False, "state": {"terminated": {"exitCode": 137}}}
        evicted = {"reason": "Evicted", "message": full, "conditions": [], "containerStatuses": [killed]}
        failed = {"status": {"phase": "Failed", **evicted}}
        await ground.kube.patch(PODS, ground.namespace, first["metadata"]["name"], failed, "status")

        async def replaced() -> bool:
            pods = await ground.pods()
            return len(pods) == 1 and pods[0]["metadata"]["uid"] != first["metadata"]["uid"]

        await eventually("another judge in its place", replaced)
    (told,) = [message for reason, message in ground.events if reason == "JudgeFailed"]
    assert told.endswith(f"which has ended: Evicted: {full}"), "with the pod its log goes, and nothing else says why"


async def test_new_image_rolls_through_without_losing_the_last_judge(ground: Field) -> None:
    await ground.create()
    async with ground.controller():
        await eventually("one ready judge", ready_count(1, ground))
        (old,) = await ground.pods()
        await ground.kube.patch(POOLS, ground.namespace, NAME, {"spec": {"image": "sandbox:2"}})
        least = 1

        async def rolled() -> bool:
            nonlocal least
            pods = await ground.pods()
            least = min(least, sum(p.get("status", {}).get("phase") == "Running" for p in pods))
            images = [p["spec"]["containers"][0]["image"] for p in pods]
            return images == ["sandbox:2"]

        await eventually("a judge of the new image alone", rolled)
        assert least == 1
        (new,) = await ground.pods()
        assert new["metadata"]["labels"][LABEL_TEMPLATE_HASH] != old["metadata"]["labels"][LABEL_TEMPLATE_HASH]


async def test_external_mode_obeys_the_scale_subresource(ground: Field) -> None:
    await ground.create(scaling={"mode": "External"}, replicas=1)
    ground.announce(1000)
    async with ground.controller():
        await eventually("one ready judge", ready_count(1, ground))
        await ground.kube.patch(POOLS, ground.namespace, NAME, {"spec": {"replicas": 4}}, "scale")
        await eventually("four judges", ready_count(4, ground))
        await ground.kube.patch(POOLS, ground.namespace, NAME, {"spec": {"replicas": 0}}, "scale")
        await eventually("no judge", ready_count(0, ground))
        spec = (await ground.pool())["spec"]
        assert (spec["replicas"], spec["minReplicas"]) == (0, 1)


async def test_foreign_object_of_our_name_is_left_alone_and_named(ground: Field) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "judges-judge", "namespace": ground.namespace},
        "spec": {"ports": [{"port": 80}]},
    }
    foreign = await ground.kube.create(service)
    await ground.create()
    async with ground.controller():

        async def refused() -> bool:
            return (await ground.condition("Accepted")).get("reason") == "NameConflict"

        await eventually("the conflict in the status", refused)
    assert "Service judges-judge" in (await ground.condition("Accepted"))["message"]
    now = await ground.kube.get(SERVICES, ground.namespace, "judges-judge")
    assert now["metadata"]["resourceVersion"] == foreign["metadata"]["resourceVersion"]
    assert not await ground.pods()


async def test_forbidden_template_is_refused_in_the_status(ground: Field) -> None:
    await ground.create(template={"spec": {"hostNetwork": True}})
    async with ground.controller():

        async def refused() -> bool:
            return (await ground.condition("Accepted")).get("reason") == "InvalidTemplate"

        await eventually("the refusal in the status", refused)
    assert "spec.template.spec.hostNetwork" in (await ground.condition("Accepted"))["message"]
    assert not await ground.pods()


async def test_pods_that_admission_refuses_are_told_in_the_status(ground: Field) -> None:
    """What the operator cannot know: here the namespace allows no container as much memory as a judge asks for."""
    limit = {"type": "Container", "max": {"memory": "1Mi"}, "default": {"memory": "1Mi"}}
    meta = {"name": "small", "namespace": ground.namespace}
    limits = {"apiVersion": "v1", "kind": "LimitRange", "metadata": meta, "spec": {"limits": [limit]}}
    path = Resource("", "v1", "limitranges", "LimitRange").path(ground.namespace)
    await ground.kube.post(path, limits)
    await ground.create()
    async with ground.controller():

        async def refused() -> bool:
            return (await ground.condition("Accepted")).get("reason") == "PodRefused"

        await eventually("the refusal in the status", refused)
    assert "maximum memory usage per Container" in (await ground.condition("Accepted"))["message"]


async def test_pods_that_the_api_server_cannot_read_are_told_in_the_status(ground: Field) -> None:
    """A number that has to be in quotes is refused as no pod at all."""
    judge = {"name": "judge", "env": [{"name": "THREADS", "value": 4}]}
    await ground.create(template={"spec": {"containers": [judge]}})
    async with ground.controller():

        async def refused() -> bool:
            return (await ground.condition("Accepted")).get("reason") == "PodRefused"

        await eventually("the refusal in the status", refused)
    assert "EnvVar" in (await ground.condition("Accepted"))["message"]


async def test_nothing_is_written_when_nothing_has_changed(ground: Field) -> None:
    await ground.create()
    async with ground.controller() as controller:
        await eventually("one ready judge", settled(1, ground))
        before = (await ground.pool())["metadata"]["resourceVersion"]
        for _ in range(5):
            await controller._reconciler.reconcile(await ground.pool())
        assert (await ground.pool())["metadata"]["resourceVersion"] == before


async def test_token_that_somebody_deletes_is_made_again_before_a_judge_has_to_wait_long_for_it(
    ground: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "CACHE_SECONDS", 0.0)
    await ground.create(minReplicas=1)
    async with ground.controller():
        await eventually("a ready judge", ready_count(1, ground))
        before = await ground.kube.get(SECRETS, ground.namespace, "judges-token")
        await ground.kube.delete(SECRETS, ground.namespace, "judges-token")

        async def made_again() -> bool:
            now = await ground.kube.find(SECRETS, ground.namespace, "judges-token")
            return now is not None and now["metadata"]["uid"] != before["metadata"]["uid"]

        await eventually("another token", made_again)


async def test_deleted_pool_takes_everything_along(ground: Field) -> None:
    await ground.create(minReplicas=2)
    async with ground.controller():
        await eventually("two ready judges", ready_count(2, ground))
        await ground.kube.delete(POOLS, ground.namespace, NAME)

        async def gone() -> bool:
            left = [
                await ground.kube.find(resource, ground.namespace, name)
                for resource, name in ((SERVICES, "judges-judge"), (SECRETS, "judges-token"))
            ]
            return not await ground.pods() and not any(left)

        await eventually("pods, Service and Secret to be collected", gone)
