"""Chaos with real KubeRay, kubelet and trainer: a run survives what happens to its objects and to the API server.

The operator's own tests simulate what needs several nodes or a faulty API server (`test_chaos_api`,
`test_chaos_children`). `test_e2e_failures` kills single pods, `test_e2e_soak` kills everything again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from e2e_world import TIMEOUT, World, patient, wait_until
from kubernetes import client
from soak_blows import kill_api_server

from deepcoder_contracts import layout
from devcluster.config import Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

START_SECONDS = 300
RUN_SECONDS = 420
GONE_SECONDS = 240
STAGE = "short"
RAY = ("ray.io", "v1")


def every_five(manifest: dict[str, Any]) -> None:
    manifest["spec"]["checkpoint"].update(everySteps=5)


def step_at_least(step: int) -> Callable[[dict[str, Any]], bool]:
    return lambda status: status.get("phase") == "Running" and status.get("progress", {}).get("step", 0) >= step


def ended(world: World, name: str) -> dict[str, Any]:
    """The status of a run once it is over, whatever the API server does meanwhile."""

    def look() -> dict[str, Any] | None:
        status = world.status(name)
        return status if status.get("phase") in ("Complete", "Failed") else None

    return wait_until(f"{name} is over", patient(look), RUN_SECONDS, patient(lambda: world.brief(name)))


def test_api_server_killed_twice_in_mid_run_the_run_completes_without_a_duplicate_child(
    world: World, start_run: Callable[..., str]
) -> None:
    name = start_run("e2e-api-killed", steps=60, change=every_five)
    world.wait_for(name, "a step", step_at_least(1), START_SECONDS)
    for _ in range(2):
        seen = world.status(name)["progress"]["step"]
        assert kill_api_server(Cluster.named().cgroup), "there is no API server to kill"
        going_on = patient(lambda seen=seen: step_at_least(seen + 1)(world.status(name)))  # type: ignore[misc]
        wait_until("a step that the operator was told of since", going_on, 120)
    status = ended(world, name)
    assert (status["phase"], status["ordinal"]) == ("Complete", 1)
    assert status["latestCheckpoint"]["final"]
    assert world.rayjobs(name) in ([], [f"{name}-s0-a1"])


def test_rayjob_deleted_by_a_user_in_mid_stage_the_next_attempt_goes_on_from_what_was_saved(
    world: World, start_run: Callable[..., str]
) -> None:
    name = start_run("e2e-job-deleted", steps=60, change=every_five)
    world.wait_for(name, "a checkpoint", lambda s: s.get("latestCheckpoint"), START_SECONDS)
    world.objects.delete_namespaced_custom_object(
        *RAY, world.namespace, "rayjobs", f"{name}-s0-a1", _request_timeout=TIMEOUT
    )
    status = ended(world, name)
    assert (status["phase"], status["ordinal"]) == ("Complete", 2)
    steps = [line["step"] for line in world.stored(name, layout.metrics_key(STAGE, 2))]
    assert steps[0] > 5, "attempt 2 began from nothing"
    assert steps == list(range(steps[0], 61))


def test_attempt_whose_pods_fit_nowhere_is_given_up_with_the_schedulers_words_and_nothing_stays(
    world: World, start_run: Callable[..., str]
) -> None:
    def nowhere(manifest: dict[str, Any]) -> None:
        stage = manifest["spec"]["stages"][0]
        head = stage.setdefault("resources", {}).setdefault("head", {}).setdefault("template", {})
        head.setdefault("spec", {})["nodeSelector"] = {"no.such/node": "here"}
        stage["preRunningDeadlineSeconds"] = 20
        manifest["spec"]["failurePolicy"] = {"maxAttempts": 1}

    name = start_run("e2e-nowhere", change=nowhere)
    status = ended(world, name)
    assert status["phase"] == "Failed"
    failed = next(c for c in status["conditions"] if c["type"] == "Failed")
    told = f"{failed['reason']} {failed['message']} {status['stages']}"
    assert "preRunningDeadlineSeconds" in told
    assert "node" in told
    wait_until("nothing of it runs", lambda: not world.rayjobs(name), 120, lambda: world.rayjobs(name))


@pytest.fixture
def foreign_job(world: World) -> Iterator[str]:
    """A foreign RayJob with the name of a run's first attempt; it is suspended and starts nothing."""
    run = "e2e-foreign"
    container = {"name": "ray-head", "image": world.cluster.images.trainer}
    head = {"rayStartParams": {}, "template": {"spec": {"containers": [container]}}}
    meta = {"name": f"{run}-s0-a1", "labels": {"whose": "theirs"}}
    spec: dict[str, Any] = {"suspend": True, "shutdownAfterJobFinishes": True, "entrypoint": "true"}
    spec["rayClusterSpec"] = {"headGroupSpec": head}
    body = {"apiVersion": "/".join(RAY), "kind": "RayJob", "metadata": meta, "spec": spec}
    world.objects.create_namespaced_custom_object(*RAY, world.namespace, "rayjobs", body, _request_timeout=TIMEOUT)
    yield run
    _delete_job(world, meta["name"])


def test_foreign_rayjob_under_our_name_is_named_never_adopted_and_gone_on_without(
    world: World, start_run: Callable[..., str], foreign_job: str
) -> None:
    name = start_run(foreign_job)

    def conflict(status: dict[str, Any]) -> bool:
        return any(c["reason"] == "NameConflict" for c in status.get("conditions", ()))

    world.wait_for(name, "the conflict is said", conflict, 60)
    job = world.objects.get_namespaced_custom_object(
        *RAY, world.namespace, "rayjobs", f"{name}-s0-a1", _request_timeout=TIMEOUT
    )
    assert job["metadata"]["labels"] == {"whose": "theirs"}
    assert "ownerReferences" not in job["metadata"]
    _delete_job(world, f"{name}-s0-a1")
    assert ended(world, name)["phase"] == "Complete"


def _delete_job(world: World, name: str) -> None:
    try:
        world.objects.delete_namespaced_custom_object(*RAY, world.namespace, "rayjobs", name, _request_timeout=TIMEOUT)
    except client.ApiException as error:
        if error.status != 404:
            raise


def test_namespace_deleted_in_mid_run_goes_with_all_that_is_in_it(world: World) -> None:
    there = World(world.cluster, "e2e-gone")
    remove_namespace(there)
    labels = world.core.read_namespace(world.namespace, _request_timeout=TIMEOUT).metadata.labels
    own = {k: v for k, v in labels.items() if k != "kubernetes.io/metadata.name"}
    body = {"metadata": {"name": there.namespace, "labels": own}}
    there.core.create_namespace(body, _request_timeout=TIMEOUT)
    try:
        run = there.small_run("e2e-gone", steps=120)
        secret = run["spec"]["checkpoint"]["s3"]["credentialsSecretRef"]["name"]
        data = world.core.read_namespaced_secret(secret, world.namespace, _request_timeout=TIMEOUT).data
        copy = {"metadata": {"name": secret}, "data": data}
        there.core.create_namespaced_secret(there.namespace, copy, _request_timeout=TIMEOUT)
        there.create(run)
        there.wait_for("e2e-gone", "a step", step_at_least(1), START_SECONDS)
    finally:
        remove_namespace(there)


def remove_namespace(world: World) -> None:
    """Delete it and wait until it is gone, which a finalizer that nobody removes would prevent."""

    def gone() -> bool:
        try:
            world.core.delete_namespace(world.namespace, _request_timeout=TIMEOUT)
        except client.ApiException as error:
            if error.status == 404:
                return True
            if error.status != 409:
                raise
        return False

    wait_until(f"namespace {world.namespace} is gone", gone, GONE_SECONDS)
