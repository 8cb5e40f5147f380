"""A run on the real cluster survives failures: each test causes one, and checks what must hold afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from e2e_world import GROUP, TIMEOUT, VERSION, World, wait_until

from deepcoder_contracts import layout
from deepcoder_demo.settings import OPERATOR_NAMESPACE

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

START_SECONDS = 300
RUN_SECONDS = 420
STAGE = "short"
OPERATOR = "app.kubernetes.io/name=deepcoder-operator"


def step_at_least(step: int) -> Callable[[dict], bool]:
    return lambda status: status.get("phase") == "Running" and status.get("progress", {}).get("step", 0) >= step


def operators(world: World) -> dict[str, Any]:
    """The operator's pods by uid."""
    found = world.core.list_namespaced_pod(OPERATOR_NAMESPACE, label_selector=OPERATOR, _request_timeout=TIMEOUT)
    return {pod.metadata.uid: pod for pod in found.items}


def is_ready(pod: Any) -> bool:
    return any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or [])


def test_operator_killed_in_mid_run_the_run_completes_without_a_duplicate_child(
    world: World, start_run: Callable[..., str]
) -> None:
    name = start_run("e2e-operator-killed", steps=60, change=lambda m: m["spec"]["checkpoint"].update(everySteps=10))
    world.wait_for(name, "a step", step_at_least(1), START_SECONDS)
    jobs = world.rayjobs(name)
    assert jobs == [f"{name}-s0-a1"]
    killed = operators(world)
    assert killed, "there is no operator to kill"
    for pod in killed.values():
        world.kill_pod(pod.metadata.name, OPERATOR_NAMESPACE)
    wait_until(
        "another operator is ready",
        lambda: any(uid not in killed and is_ready(pod) for uid, pod in operators(world).items()),
        120,
        lambda: {pod.metadata.name: pod.status.phase for pod in operators(world).values()},
    )
    assert not set(killed) & set(operators(world)), "an operator outlived its killing"
    seen = world.status(name)["progress"]["step"]
    world.wait_for(name, "a step that the new operator was told of", step_at_least(seen + 1), 60)
    assert world.rayjobs(name) == jobs

    status = world.wait_for_phase(name, "Complete", RUN_SECONDS)

    assert status["ordinal"] == 1, "a second attempt was made"
    assert world.rayjobs(name) in ([], jobs)
    assert status["latestCheckpoint"]["final"]


def test_head_deleted_in_mid_stage_attempt_two_resumes_from_the_newest_verified_checkpoint(
    world: World, start_run: Callable[..., str]
) -> None:
    name = start_run("e2e-head-lost", steps=60, change=lambda m: m["spec"]["checkpoint"].update(everySteps=5))
    world.wait_for(name, "a checkpoint", lambda s: s.get("latestCheckpoint"), START_SECONDS)
    head = next(p.metadata.name for p in world.pods(name) if p.metadata.labels.get("ray.io/node-type") == "head")
    world.kill_pod(head)

    status = world.wait_for_phase(name, "Complete", RUN_SECONDS)

    assert status["ordinal"] == 2
    steps = [line["step"] for line in world.stored(name, layout.metrics_key(STAGE, 2))]
    first = steps[0]
    assert first > 5, "attempt 2 began from nothing"
    assert steps == list(range(first, 61))
    # From storage, because the status has only the checkpoints that were newest when the operator looked.
    saved = next(step for step in steps if step % 5 == 0)
    made = world.stored(name, f"{layout.checkpoint_dir(STAGE, saved, 2)}/{layout.MANIFEST}")
    parent = layout.checkpoint_dir(STAGE, first - 1, 1)
    assert made["parent"]["uri"].endswith(f"/{parent}"), "attempt 2 is not a child of what it resumed from"
    assert made["parent"]["digest"] == world.digest(name, f"{parent}/{layout.MANIFEST}"), "the chain is broken"


def judge_memory(quantity: str) -> dict[str, Any]:
    """A judge's container with that memory: with 256Mi for two slots it refuses to start."""
    return {
        "name": "judge",
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": quantity}},
    }


def test_judges_that_refuse_to_start_hold_no_trainer_and_the_run_goes_on_when_their_pool_is_mended(
    world: World, start_run: Callable[..., str]
) -> None:
    def starve(manifest: dict[str, Any]) -> None:
        manifest["spec"]["sandbox"]["template"]["template"] = {"spec": {"containers": [judge_memory("256Mi")]}}

    def accepted(status: dict[str, Any]) -> dict[str, str]:
        return next((c for c in status.get("conditions", []) if c["type"] == "Accepted"), {})

    name = start_run("e2e-judges-refuse", change=starve)
    world.wait_for(
        name,
        "no GPU is requested",
        lambda status: status.get("phase") == "Pending" and accepted(status).get("reason") == "JudgesRefuseToStart",
        START_SECONDS,
    )
    assert "raise the limit" in accepted(world.status(name))["message"], "a judge's own words say what mends it"
    wait_until("the trainer's pods are gone", lambda: not world.rayjobs(name), 60, lambda: world.rayjobs(name))
    assert [p.metadata.name for p in world.pods(name) if "ray.io/node-type" in p.metadata.labels] == []
    assert world.status(name)["ordinal"] == 1, "attempts were made for judges that cannot start"

    mended = {"spec": {"template": {"spec": {"containers": [judge_memory("5Gi")]}}}}
    world.objects.patch_namespaced_custom_object(
        GROUP, VERSION, world.namespace, "sandboxpools", f"{name}-sandbox", mended, _request_timeout=TIMEOUT
    )
    status = world.wait_for_phase(name, "Complete", RUN_SECONDS)
    assert status["ordinal"] == 2


def test_suspend_drains_and_saves_and_frees_the_pods_and_resuming_goes_on(
    world: World, start_run: Callable[..., str]
) -> None:
    name = start_run("e2e-suspended", steps=120)
    world.wait_for(name, "a step", step_at_least(1), START_SECONDS)
    world.patch(name, {"suspend": True})

    status = world.wait_for_phase(name, "Suspended", 180)
    saved = status["latestCheckpoint"]["step"]
    ending = world.stored(name, layout.exit_key(STAGE, 1))
    assert ending["code"] == 75
    assert ending["step"] == saved >= 1
    wait_until("the trainer's pods are gone", lambda: not world.rayjobs(name), 60, lambda: world.rayjobs(name))
    assert [p.metadata.name for p in world.pods(name) if "ray.io/node-type" in p.metadata.labels] == []

    world.patch(name, {"suspend": False})
    world.wait_for(name, "a step of attempt 2", step_at_least(saved + 1), START_SECONDS)
    assert world.status(name)["ordinal"] == 2
    assert world.stored(name, layout.claim_key(STAGE, 2)) is not None


def test_deleting_a_run_in_mid_stage_leaves_nothing_in_the_cluster(world: World, start_run: Callable[..., str]) -> None:
    name = start_run("e2e-deleted", steps=120)
    world.wait_for(name, "an attempt runs", lambda s: s.get("phase") == "Running", START_SECONDS)
    run = world.run(name)
    assert run is not None
    world.delete(name)
    world.wait_gone(name, 180)
    uid = run["metadata"]["uid"]
    wait_until("no object of the run", lambda: not world.remains(uid, name), 90, lambda: world.remains(uid, name))
