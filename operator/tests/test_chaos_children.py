"""What people, KubeRay, nodes and namespaces do to the objects that belong to a run: it goes on, or says why it cannot.

Nothing of somebody else's is adopted, nothing is made again for a run that has ended, and no failure is counted that
was none.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import pytest
import s3_server
from kuberay_standin import Standin
from loop_world import Cluster, put_secret, wait_for
from operator_lives import kept_alive
from run_manifests import TRAIN, run_manifest

from deepcoder_contracts.api import run as run_api
from deepcoder_contracts.api.schema import custom_resource_definition
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Object
from deepcoder_operator.kube.resources import (
    BY_KIND,
    CONFIGMAPS,
    CRDS,
    EVENTS,
    PODS,
    POOLS,
    RAYCLUSTERS,
    RAYJOBS,
    RUNS,
    SECRETS,
    Resource,
)  # fmt: skip
from deepcoder_operator.storage import credentials

pytestmark = [pytest.mark.apiserver, pytest.mark.s3]

NAMESPACES = Resource("", "v1", "namespaces", "Namespace")
NO_PAUSE = {"backoff": {"initialSeconds": 0}}
FIRST, SECOND = "demo-s0-a1", "demo-s0-a2"


@pytest.fixture
async def world(site: Cluster) -> AsyncIterator[Cluster]:
    """A namespace with all that runs need, and an operator in this process."""
    async with kept_alive(site):
        yield site


async def start(world: Cluster, **spec: Any) -> None:
    await world.create_run(stages=[TRAIN], failurePolicy=NO_PAUSE, checkpoint={"drainSeconds": 1}, **spec)
    await world.until_running(FIRST)


async def failures(world: Cluster) -> tuple[int, int]:
    stage = (await world.run())["status"]["stages"][0]
    return stage["attempts"], stage.get("failures", 0)


async def until_told(world: Cluster, *reasons: str) -> None:
    """Wait for an event with one of these reasons."""

    async def posted() -> bool:
        events, _ = await world.kube.list(EVENTS, world.namespace)
        return any(e["reason"] in reasons for e in events)

    await wait_for(f"an event {' or '.join(reasons)}", posted)


@pytest.mark.parametrize(("resource", "name"), [(RAYJOBS, FIRST), (RAYCLUSTERS, f"{FIRST}-c")])
async def test_what_an_attempt_lives_in_is_deleted_and_the_next_attempt_goes_on(
    world: Cluster, resource: Resource, name: str
) -> None:
    await start(world)
    await world.standin.save(FIRST, 10)
    await world.kube.delete(resource, world.namespace, name)
    await world.until_running(SECOND)
    assert (await world.run())["status"]["latestCheckpoint"]["step"] == 10
    await world.finish(SECOND)
    await world.until_phase("Complete")
    assert world.standin.seen == [FIRST, SECOND]


@pytest.mark.parametrize(
    ("resource", "name"),
    [
        (CONFIGMAPS, None),
        pytest.param(CONFIGMAPS, "demo-config", marks=pytest.mark.long),
        pytest.param(POOLS, "demo-sandbox", marks=pytest.mark.long),
    ],
)
async def test_what_an_attempt_has_read_is_deleted_and_it_goes_on(
    world: Cluster, resource: Resource, name: str | None
) -> None:
    await start(world)
    await world.standin.config(FIRST)
    await world.kube.delete(resource, world.namespace, name or await world.standin.config_map(FIRST))
    await world.finish(FIRST)
    await world.until_phase("Complete")
    assert await failures(world) == (1, 0)


async def test_secret_that_is_gone_holds_the_end_up_until_it_is_back(
    world: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start(world)
    await world.kube.delete(SECRETS, world.namespace, "s3")
    monkeypatch.setattr(credentials, "CACHE_SECONDS", 0.0)  # else the end is read with what was read before
    await world.finish(FIRST)

    def waits(run: Object) -> bool:
        told = {c["type"]: c["reason"] for c in run["status"]["conditions"]}
        return (run["status"]["phase"], told["Progressing"]) == ("Promoting", "SecretNotFound")

    await world.until("the verdict waits", waits)
    await put_secret(world.kube, world.namespace, s3_server.SECRET)
    await world.until_phase("Complete")
    assert await failures(world) == (1, 0)


async def test_finished_run_makes_nothing_again_whatever_disappears(world: Cluster) -> None:
    await start(world)
    config = await world.standin.config_map(FIRST)
    await world.finish(FIRST)
    await world.until_phase("Complete")
    assert await world.kube.find(CONFIGMAPS, world.namespace, config) is None, "it has gone with its attempt"
    assert await world.kube.delete(CONFIGMAPS, world.namespace, "demo-config")
    await world.kube.patch(RUNS, world.namespace, "demo", {"metadata": {"labels": {"touched": "yes"}}})
    await asyncio.sleep(2)
    assert world.standin.seen == [FIRST]
    assert (await world.kube.list(RAYJOBS, world.namespace))[0] == []
    assert (await world.run())["status"]["phase"] == "Complete"


async def test_job_that_never_starts_is_given_up_and_tried_again(world: Cluster) -> None:
    world.standin.starts = False
    stage = TRAIN | {"preRunningDeadlineSeconds": 60}
    await world.create_run(stages=[stage], failurePolicy=NO_PAUSE, checkpoint={"drainSeconds": 1})
    await world.until("asked for", lambda run: (run.get("status", {}).get("attempt") or {}).get("uid"))
    job = await world.kube.get(RAYJOBS, world.namespace, FIRST)
    assert job["spec"]["preRunningDeadlineSeconds"] > 60, "KubeRay's own deadline stands behind ours"
    # KubeRay says so itself when its own deadline has passed.
    await world.standin.set_job(FIRST, jobDeploymentStatus="Failed", reason="PreRunningDeadlineExceeded",
                                message="head pod never became ready")  # fmt: skip
    await world.until("tried again", lambda run: run["status"]["stages"][0]["attempts"] == 2)
    world.standin.starts = True
    await world.until_running(SECOND)
    await world.finish(SECOND)
    await world.until_phase("Complete")
    assert await failures(world) == (2, 1)


async def test_success_without_a_manifest_is_a_failure(world: Cluster) -> None:
    await start(world)
    await world.standin.leave(FIRST, 0, "Completed")
    await world.finish(SECOND)
    await world.until_phase("Complete")
    assert await failures(world) == (2, 1)
    await until_told(world, "ManifestMissing")


@pytest.mark.long
async def test_manifest_without_success_is_kept_and_the_attempt_counts_as_failed(world: Cluster) -> None:
    await start(world)
    await world.standin.save(FIRST, 10)
    await world.standin.leave(FIRST, 1, "Crashed")
    await world.until_running(SECOND)
    assert (await world.run())["status"]["latestCheckpoint"]["step"] == 10
    await world.finish(SECOND)
    await world.until_phase("Complete")
    assert await failures(world) == (2, 1)


async def test_node_that_is_lost_is_named(world: Cluster) -> None:
    await start(world)
    told = {"reason": "DeletionByTaintManager", "message": "node gpu-7"}
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")  # without a time it is taken back as stale
    lost = [
        {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"},
        {"type": "DisruptionTarget", "status": "True", "lastTransitionTime": now, **told},
    ]
    await world.kube.patch(PODS, world.namespace, f"{FIRST}-head", {"status": {"conditions": lost}}, "status")
    await world.until("why its head is to go", lambda run: run["status"]["attempt"].get("reason") == "NodeLost")
    await world.kube.delete(PODS, world.namespace, f"{FIRST}-head", grace_seconds=0)
    await world.until_running(SECOND)
    await until_told(world, "NodeLost")


def foreign(kind: str, namespace: str, name: str) -> Object:
    resource = BY_KIND[kind]
    obj: Object = {
        "apiVersion": resource.api_version,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "labels": {"whose": "theirs"}},
    }
    specs: dict[str, Any] = {
        "NetworkPolicy": {"podSelector": {}},
        "SandboxPool": {"maxReplicas": 1},
        "RayJob": {"entrypoint": "true", "rayClusterSpec": {"headGroupSpec": {"rayStartParams": {}, "template": {
            "spec": {"containers": [{"name": "ray-head", "image": "theirs"}]}}}}, "suspend": True},
    }  # fmt: skip
    return obj | ({"spec": specs[kind]} if kind in specs else {})


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("RayJob", FIRST),
        pytest.param("SandboxPool", "demo-sandbox", marks=pytest.mark.long),
        pytest.param("ConfigMap", "demo-config", marks=pytest.mark.long),
        pytest.param("ServiceAccount", "demo-trainer", marks=pytest.mark.long),
        pytest.param("NetworkPolicy", "demo-trainer", marks=pytest.mark.long),
    ],
)
async def test_object_of_somebody_else_is_named_and_never_adopted(world: Cluster, kind: str, name: str) -> None:
    theirs = foreign(kind, world.namespace, name)
    world.standin.starts = kind != "RayJob"
    made = await world.kube.create(theirs)
    await world.create_run(stages=[TRAIN], failurePolicy=NO_PAUSE)

    def named(run: Object) -> bool:
        conditions = run.get("status", {}).get("conditions", [])
        return any(c["reason"] == "NameConflict" and name in c["message"] for c in conditions)

    await world.until("NameConflict", named)
    found = await world.kube.get(BY_KIND[kind], world.namespace, name)
    assert found["metadata"]["uid"] == made["metadata"]["uid"]
    assert found["metadata"].get("ownerReferences") is None
    assert found["metadata"]["labels"] == {"whose": "theirs"}
    await world.kube.delete(BY_KIND[kind], world.namespace, name)
    world.standin.starts = True
    await world.until("it runs", lambda run: (run["status"].get("attempt") or {}).get("state") == "Running")


async def test_definition_of_another_release_comes_and_goes_under_a_live_run(world: Cluster) -> None:
    definition = custom_resource_definition(run_api.RESOURCE)
    newer = deepcopy(definition)
    schema = newer["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    schema["spec"]["properties"]["ofTomorrow"] = {"type": "string", "default": "set by tomorrow's release"}
    schema["status"]["properties"]["ofTomorrow"] = {"type": "string"}
    await start(world)
    await world.kube.apply(newer)
    try:
        await asyncio.sleep(2)
        patch = {"spec": {"ofTomorrow": "x"}, "metadata": {"labels": {"touched": "newer"}}}
        await world.kube.patch(RUNS, world.namespace, "demo", patch)
        await world.kube.patch(RUNS, world.namespace, "demo", {"status": {"ofTomorrow": "x"}}, "status")
    finally:
        await world.kube.apply(definition)
    await asyncio.sleep(1)
    await world.kube.patch(RUNS, world.namespace, "demo", {"metadata": {"labels": {"touched": "older"}}})
    await world.finish(FIRST)
    await world.until_phase("Complete")
    assert (await world.kube.get(CRDS, None, "deepcoderruns.deepcoder.dev"))["spec"]["versions"][0]["served"]
    assert world.standin.seen == [FIRST]


@pytest.mark.parametrize("artifacts", ["Delete", pytest.param("Retain", marks=pytest.mark.long)])
@pytest.mark.early
async def test_namespace_deleted_in_mid_run_is_gone_within_a_minute(world: Cluster, artifacts: str) -> None:
    """The namespace's controller deletes in any order: the Secret may go before the run that needs it."""
    namespace = f"t-{uuid.uuid4().hex[:10]}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    await world.kube.post(NAMESPACES.path(None), body)
    await put_secret(world.kube, namespace, s3_server.SECRET)
    standin = Standin(world.kube, namespace, world.s3)
    playing = asyncio.create_task(standin.run())
    s3 = {"bucket": s3_server.BUCKET, "endpoint": world.s3.endpoint, "credentialsSecretRef": {"name": "s3"}}
    checkpoint = {"s3": s3, "drainSeconds": 5}
    await world.kube.create(
        run_manifest(namespace, stages=[TRAIN], checkpoint=checkpoint, cleanup={"artifacts": artifacts})
    )
    try:

        async def runs() -> bool:
            run = await world.kube.get(RUNS, namespace, "demo")
            return ((run.get("status") or {}).get("attempt") or {}).get("state") == "Running"

        await wait_for("it runs", runs)
        await world.kube.delete(NAMESPACES, None, namespace)

        async def gone() -> bool:
            with suppress(errors.Unavailable):
                return await world.kube.find(NAMESPACES, None, namespace) is None
            return False

        await wait_for("the namespace is gone", gone)
    finally:
        playing.cancel()
