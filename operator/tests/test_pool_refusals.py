"""Judges that the API server refuses (a quota, an admission policy): said in the status, and not asked in a loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pool_passes import Harness

from deepcoder_contracts.judge import EXIT_REFUSED
from deepcoder_operator.controllers.pool import PoolController
from deepcoder_operator.domain.pool_names import LABEL_INDEX, LABEL_POOL, LABEL_TEMPLATE_HASH
from deepcoder_operator.domain.world import pool_view
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.resources import PODS, POOLS
from deepcoder_operator.progress_board import ProgressBoard
from deepcoder_operator.sandbox import judges as judges_module

EVENTS = [("ADDED", "stays"), ("ADDED", "goes"), ("DELETED", "goes")]
AWAY = errors.WebhookAway('failed calling webhook "sidecars"', 500)


@pytest.fixture
def harness() -> Harness:
    return Harness()


async def test_refused_judges_are_tried_again_after_growing_pauses(harness: Harness) -> None:
    await harness.passes(120)
    assert harness.api.tries < 100, "forty judges each second for two minutes would be 4800"
    assert harness.api.lists < 15


async def test_refusal_is_said_as_long_as_judges_are_missing_for_it(harness: Harness) -> None:
    for _ in range(20):
        await harness.passes(1)
        assert harness.accepted() == ("False", "PodRefused"), "between two tries, too"
    harness.api.quota = 40
    await harness.passes(61)
    assert len(harness.api.pods) == 40
    assert harness.accepted() == ("True", "Valid")


async def test_pod_that_somebody_else_has_under_a_judges_name_is_told_and_counts_as_no_judge(harness: Harness) -> None:
    create = harness.api.create

    async def taken(obj: dict[str, Any]) -> dict[str, Any]:
        if obj["kind"] == "Pod":
            raise errors.AlreadyExists("it already exists", 409)
        return await create(obj)

    async def find(resource: Any, *_: Any) -> Any:
        return {"metadata": {"name": "theirs", "uid": "theirs"}} if resource == PODS else None

    harness.api.create, harness.api.find = taken, find  # type: ignore[method-assign]
    await harness.passes(2)
    assert harness.accepted() == ("False", "NameConflict")
    assert "JudgesCreated" not in [reason for reason, _ in harness.events]


@pytest.mark.parametrize("label", [LABEL_POOL, LABEL_INDEX, LABEL_TEMPLATE_HASH])
async def test_judge_that_was_isolated_by_its_labels_is_named_and_not_created_each_second(
    harness: Harness, label: str
) -> None:
    """It has left the pool, and still has the name that its successor would get."""
    harness.edit(minReplicas=3, maxReplicas=3)
    harness.api.quota = 99
    await harness.passes(2)
    pod = harness.live()[0]
    put_back = f"{label}={pod['metadata']['labels'][label]}"
    labels = pod["metadata"]["labels"]
    for other in harness.live():
        harness.change(other, {"conditions": [{"type": "Ready", "status": "True"}]})
    harness.unlabel(pod, label)
    harness.edit(minReplicas=4, maxReplicas=4)
    harness.api.tries, harness.events = 0, []
    await harness.passes(120)
    assert harness.accepted() == ("False", "NameConflict")
    accepted = next(c for c in harness.pool["status"]["conditions"] if c["type"] == "Accepted")
    assert f"Pod {pod['metadata']['name']} " in accepted["message"]
    assert f"put the label {put_back} back, or delete the pod" in accepted["message"]
    assert ("JudgesCreated", "judges created: 1, wanted: 4") not in harness.events[1:], "at most the fourth judge"
    assert harness.api.tries < 12
    harness.change(pod, {}, **labels)
    await harness.passes(70)
    assert harness.accepted() == ("True", "Valid")
    assert len(harness.live()) == 4


async def test_isolated_judge_that_is_being_deleted_is_followed_as_soon_as_it_is_gone(harness: Harness) -> None:
    harness.edit(minReplicas=1, maxReplicas=1)
    harness.api.quota = 99
    await harness.passes(2)
    (pod,) = harness.live()
    harness.unlabel(pod, LABEL_POOL)
    await harness.api.delete(PODS, "ml", pod["metadata"]["name"], uid=pod["metadata"]["uid"])
    harness.events = []
    await harness.passes(60)
    assert harness.accepted() == ("True", "Valid"), "nobody has to do anything"
    assert harness.events == []
    harness.api.pods.remove(pod)
    await harness.passes(1)
    assert len(harness.live()) == 1


async def test_refusal_stays_known_when_a_judge_turns_out_to_exist(harness: Harness) -> None:
    """It was not created, so nothing shows that the API server takes pods again."""
    harness.api.quota = 0
    harness.edit(minReplicas=1, maxReplicas=1)
    await harness.passes(1)
    assert harness.accepted() == ("False", "PodRefused")
    create = harness.api.create

    async def exists(obj: dict[str, Any]) -> dict[str, Any]:
        if obj["kind"] == "Pod":
            raise errors.AlreadyExists("it already exists", 409)
        return await create(obj)

    harness.api.create = exists  # type: ignore[method-assign]
    await harness.passes(3)
    assert harness.accepted() == ("False", "PodRefused")
    assert "JudgesCreated" not in [reason for reason, _ in harness.events]


async def test_refusing_judge_whose_replacement_is_refused_is_the_last_to_go(harness: Harness) -> None:
    """A quota that was lowered takes no judge in its place. Those that stay say why none starts."""
    harness.edit(minReplicas=3, maxReplicas=3)
    harness.api.quota = 3
    await harness.passes(2)
    for number, pod in enumerate(harness.live()):
        ended = {"terminated": {"exitCode": EXIT_REFUSED, "reason": "Error", "message": "no Landlock"}}
        container = {"name": "judge", "ready": False, "restartCount": 2, "state": ended, "lastState": ended}
        pod["spec"]["nodeName"] = f"node-{number}"
        harness.change(pod, {"phase": "Running", "containerStatuses": [container]})
    harness.api.quota = 0
    await harness.passes(400)
    assert len(harness.live()) == 2
    harness.api.quota = 99
    await harness.passes(70)
    assert len(harness.live()) == 3


async def test_refusal_is_forgotten_when_no_judge_is_missing_any_more(harness: Harness) -> None:
    harness.api.quota = 3
    await harness.passes(5)
    assert harness.accepted() == ("False", "PodRefused")
    harness.edit(minReplicas=3, maxReplicas=3, scaling={"stabilizationSeconds": 0})
    await harness.passes(5)
    assert harness.accepted() == ("True", "Valid")


async def test_pass_that_meets_a_conflict_ends_when_nothing_of_it_is_under_way_any_more(harness: Harness) -> None:
    """The next pass would else begin beside what is left of it, and count judges that it does not know of."""
    harness.edit(minReplicas=3, maxReplicas=3)
    harness.api.quota, harness.api.contended = 40, {"1": asyncio.Event(), "2": asyncio.Event()}
    one_pass = asyncio.create_task(harness.passes(1))
    while harness.api.under_way < 2 and not one_pass.done():
        await asyncio.sleep(0)
    assert not one_pass.done()
    for event in harness.api.contended.values():
        event.set()
    with pytest.raises(errors.Conflict):
        await one_pass
    assert harness.api.under_way == 0
    assert ("JudgesCreated", "judges created: 2, wanted: 3") in harness.events


async def test_judges_that_a_webhook_keeps_away_are_said_and_come_when_it_is_back(harness: Harness) -> None:
    harness.api.forbidden, harness.api.refusal, harness.api.quota = "Pod", AWAY, 40
    await harness.passes(2)
    assert harness.accepted() == ("False", "PodRefused")
    harness.api.forbidden = ""
    await harness.passes(10)
    assert harness.accepted() == ("True", "Valid")


async def test_runs_hold_no_gpus_for_judges_whose_pods_are_invalid_and_a_mended_template_is_tried_at_once(
    harness: Harness,
) -> None:
    """Unlike a quota, what makes such a pod invalid does not change by itself."""
    harness.api.forbidden, harness.api.refusal = "Pod", errors.Invalid('unsupported value: "Exist"', 422)
    await harness.passes(5)
    assert harness.accepted() == ("False", "PodInvalid")
    assert pool_view(harness.pool).stuck_reason == "PodInvalid"
    assert "fix spec.template" in pool_view(harness.pool).message
    harness.api.forbidden, harness.api.quota = "", 40
    harness.edit(minReplicas=40, maxReplicas=40, slotsPerPod=3)
    await harness.passes(1)
    assert len(harness.api.pods) == 40
    assert harness.accepted() == ("True", "Valid")
    assert pool_view(harness.pool).stuck_reason == ""


async def test_runs_hold_no_gpus_for_a_pool_whose_service_can_never_be_made(harness: Harness) -> None:
    """Its name begins with a digit, for example, which earlier releases took."""
    harness.api.forbidden, harness.api.refusal = "Service", errors.Invalid("a DNS-1035 label must start with a-z", 422)
    with pytest.raises(errors.Invalid):
        await harness.passes(1)
    assert harness.accepted() == ("False", "Invalid")
    assert pool_view(harness.pool).stuck_reason == "Invalid"


@pytest.mark.parametrize("refusal", [errors.Forbidden("it may not be made", 403), AWAY], ids=lambda e: type(e).__name__)
async def test_what_surrounds_judges_and_may_not_be_made_is_said_too(
    harness: Harness, refusal: errors.KubeError
) -> None:
    harness.api.forbidden, harness.api.refusal = "Secret", refusal
    with pytest.raises(type(refusal)):
        await harness.passes(1)
    assert harness.accepted() == ("False", type(refusal).__name__)
    harness.api.forbidden, harness.api.quota = "", 40
    await harness.passes(2)
    assert harness.accepted() == ("True", "Valid")


async def test_new_pool_of_which_no_judge_can_be_made_is_not_ready_for_having_been_scaled_to_zero(
    harness: Harness,
) -> None:
    """Runs ask for no GPU while their pool says that somebody has to mend it; of an idle one they would."""
    harness.edit(minReplicas="many")
    await harness.passes(2)
    assert harness.said("Ready") == ("False", "InvalidSpec")
    assert pool_view(harness.pool).stuck_reason == "InvalidSpec"


async def test_idle_pool_is_built_once_and_anew_when_its_spec_changes(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand pools at rest are looked at two hundred times a second."""
    built: list[int] = []
    build = judges_module.build_pod_template

    def counting(*arguments: Any) -> dict[str, Any]:
        built.append(1)
        return build(*arguments)

    monkeypatch.setattr(judges_module, "build_pod_template", counting)
    harness.api.quota = 40
    await harness.passes(20)
    assert len(built) == 1
    harness.edit(minReplicas=40, maxReplicas=41)
    await harness.passes(2)
    assert len(built) == 2


async def test_standby_has_no_workers_of_pools_that_came_and_went_and_those_that_are_there_once_it_leads() -> None:
    """A run has a pool of its own for a few hours, and a replica may stand by for months."""
    told, seen = asyncio.Event(), asyncio.Queue[str]()

    class Kube:
        async def list(self, *_: Any, **__: Any) -> tuple[list[dict[str, Any]], str]:
            return [], "1"

        async def watch(self, resource: Any, *_: Any) -> AsyncIterator[Any]:
            for version, (kind, name) in enumerate(EVENTS if resource is POOLS else (), 2):
                meta = {"name": name, "namespace": "ml", "uid": name, "resourceVersion": str(version)}
                yield kind, {"metadata": meta}
            if resource is POOLS:
                told.set()
            await asyncio.Event().wait()

    class Reconciler:
        async def reconcile(self, obj: dict[str, Any]) -> float:
            seen.put_nowait(obj["metadata"]["name"])
            return 60.0

        async def close(self) -> None:
            return None

    kube: Any = Kube()
    make: Any = lambda pods: Reconciler()  # noqa: E731
    controller = PoolController(kube, ProgressBoard(), make)
    running = asyncio.create_task(controller.run())
    await told.wait()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("pool ")]
    controller.start()
    assert await seen.get() == "stays"
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_pool_whose_watch_is_behind_is_read_after_a_conflict_and_not_tried_ten_times_a_second() -> None:
    """Somebody has edited it, and the watch's connection is silent, as it may be for minutes."""

    def pool(version: str) -> dict[str, Any]:
        meta = {"name": "judges", "namespace": "ml", "uid": "p", "generation": 1, "resourceVersion": version}
        return {"metadata": meta}

    class Kube:
        async def list(self, resource: Any, *_: Any, **__: Any) -> tuple[list[dict[str, Any]], str]:
            return [pool("1")] if resource is POOLS else [], "1"

        async def watch(self, *_: Any) -> AsyncIterator[Any]:
            await asyncio.Event().wait()
            yield

        async def find(self, *_: Any) -> dict[str, Any]:
            return pool("2")

    tried: list[str] = []
    done = asyncio.Event()

    class Reconciler:
        async def reconcile(self, obj: dict[str, Any]) -> float:
            tried.append(obj["metadata"]["resourceVersion"])
            if tried[-1] == "1" and len(tried) < 20:
                raise errors.Conflict("the object has been modified", 409)
            done.set()
            return 60.0

        async def close(self) -> None:
            return None

    kube: Any = Kube()
    make: Any = lambda pods: Reconciler()  # noqa: E731
    controller = PoolController(kube, ProgressBoard(), make)
    controller.start()
    running = asyncio.create_task(controller.run())
    await done.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert tried == ["1", "2"]


async def test_pool_that_scales_by_load_says_that_kubectl_scale_has_no_effect(harness: Harness) -> None:
    """kubectl says `scaled`, and an autoscaler finds that nothing follows."""
    harness.api.quota = 40

    async def said() -> str:
        await harness.passes(2)
        for pod in harness.live():
            harness.change(pod, {"conditions": [{"type": "Ready", "status": "True"}]})
        await harness.passes(1)
        scaling = next(c for c in harness.pool["status"]["conditions"] if c["type"] == "Scaling")
        return str(scaling["message"])

    harness.edit(minReplicas=2, maxReplicas=2)
    assert await said() == ""
    harness.edit(minReplicas=2, maxReplicas=2, replicas=10)
    assert "spec.replicas (10) has no effect with scaling.mode QueueDepth" in await said()
    harness.edit(replicas=2, scaling={"mode": "External"})
    assert await said() == ""


async def test_worker_of_a_pool_that_breaks_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kube:
        async def list(self, resource: Any, *_: Any, **__: Any) -> tuple[list[dict[str, Any]], str]:
            meta = {"name": "judges", "namespace": "ml", "uid": "p", "generation": 1, "resourceVersion": "1"}
            return [{"metadata": meta}] if resource is POOLS else [], "1"

        async def watch(self, *_: Any) -> AsyncIterator[Any]:
            await asyncio.Event().wait()
            yield

    class Reconciler:
        async def close(self) -> None:
            return None

    async def broken(*_: Any) -> None:
        raise RuntimeError("a defect")

    kube: Any = Kube()
    make: Any = lambda pods: Reconciler()  # noqa: E731
    controller = PoolController(kube, ProgressBoard(), make)
    monkeypatch.setattr(controller, "_pass", broken)
    controller.start()
    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.timeout(60):
            await controller.run()
    assert raised.group_contains(RuntimeError, match="a defect")
