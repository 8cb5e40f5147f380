"""The operator as a process of its own against a real API server and a real S3 server; KubeRay's part is played.

What is shown here: the whole loop, `kill -9` in mid-run, drain through a real progress reply, deletion that leaves
nothing, and that a run at rest is not written to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import api_audit
import pytest
import s3_server
from loop_world import Cluster, wait_for
from run_manifests import EVALUATE, LONGER, TRAIN

from deepcoder_contracts.progress import Desired
from deepcoder_operator.kube.client import Object
from deepcoder_operator.kube.resources import (
    CONFIGMAPS,
    EVENTS,
    LEASES,
    NETWORK_POLICIES,
    PODS,
    POOLS,
    RAYJOBS,
    RUNS,
    Resource,
)

pytestmark = [pytest.mark.apiserver, pytest.mark.s3]


async def test_run_goes_from_pending_to_complete(cluster: Cluster) -> None:
    await cluster.create_run()
    await cluster.finish("demo-s0-a1")
    await cluster.finish("demo-s1-a2")
    second = await cluster.standin.config("demo-s1-a2")
    assert second.parent is not None
    assert second.parent.uri.endswith("/short/step-000020.a001")
    await cluster.finish("demo-s2-a3", **{"eval/held-back/pass_at_1": 0.5})
    run = await cluster.until_phase("Complete")
    status = run["status"]
    assert [s["phase"] for s in status["stages"]] == ["Complete"] * 3
    assert status["stages"][2]["results"] == {"eval/held-back/pass_at_1": "0.5"}
    assert status["latestCheckpoint"]["parentDigest"] == status["checkpoints"][1]["digest"]
    assert cluster.standin.seen == ["demo-s0-a1", "demo-s1-a2", "demo-s2-a3"]
    jobs, _ = await cluster.kube.list(RAYJOBS, cluster.namespace)
    assert jobs == []

    async def no_pool() -> bool:
        return not (await cluster.kube.list(POOLS, cluster.namespace))[0]

    await wait_for("its own pool is gone", no_pool)

    async def told() -> bool:
        events, _ = await cluster.kube.list(EVENTS, cluster.namespace)
        reasons = {e["reason"] for e in events if e["regarding"]["name"] == "demo"}
        return {"AttemptRunning", "CheckpointVerified", "StagePassed", "Completed"} <= reasons

    await wait_for("each step is told in an event", told)


async def test_operator_killed_in_mid_run_goes_on_without_a_duplicate(cluster: Cluster) -> None:
    await cluster.create_run(stages=[TRAIN, LONGER])
    await cluster.until_running("demo-s0-a1")
    await cluster.kill_operator()
    await cluster.standin.save("demo-s0-a1", 20, final=True)
    await cluster.standin.leave("demo-s0-a1", 0, "Completed")
    await cluster.start_operator()
    await cluster.until_running("demo-s1-a2")
    await cluster.kill_operator()
    await cluster.start_operator()
    await cluster.finish("demo-s1-a2")
    await cluster.until_phase("Complete")
    assert cluster.standin.seen == ["demo-s0-a1", "demo-s1-a2"]


async def test_two_operators_side_by_side_take_no_decision_twice(
    cluster: Cluster, unused_tcp_port_factory: Callable[[], int]
) -> None:
    """Nothing but the API server's versions and names stands between them."""
    directory = cluster.directory / "second"
    directory.mkdir()
    ports = {"port": unused_tcp_port_factory(), "health_port": unused_tcp_port_factory()}
    second = replace(cluster, directory=directory, process=None, tasks=[], **ports)
    await second.start_operator()
    try:
        await wait_for("both are ready", lambda: both_ready(cluster, second))
        await cluster.create_run(stages=[TRAIN, LONGER], failurePolicy={"backoff": {"initialSeconds": 0}})
        await cluster.until_running("demo-s0-a1")
        await cluster.kube.delete(PODS, cluster.namespace, "demo-s0-a1-head", grace_seconds=0)
        await cluster.finish("demo-s0-a2")
        await cluster.finish("demo-s1-a3")
        run = await cluster.until_phase("Complete")
    finally:
        await second.kill_operator()
    assert cluster.standin.seen == ["demo-s0-a1", "demo-s0-a2", "demo-s1-a3"]
    assert [(s["attempts"], s.get("failures", 0)) for s in run["status"]["stages"]] == [(2, 1), (1, 0)]


async def both_ready(first: Cluster, second: Cluster) -> bool:
    return await first.ready() and await second.ready()


async def test_head_deleted_in_mid_stage_is_followed_by_attempt_2(cluster: Cluster) -> None:
    await cluster.create_run(stages=[TRAIN], failurePolicy={"backoff": {"initialSeconds": 0}})
    await cluster.until_running("demo-s0-a1")
    await cluster.standin.save("demo-s0-a1", 10)
    await cluster.kube.delete(PODS, cluster.namespace, "demo-s0-a1-head", grace_seconds=0)
    await cluster.until_running("demo-s0-a2")
    status = (await cluster.run())["status"]
    assert status["latestCheckpoint"]["step"] == 10
    assert status["stages"][0]["failures"] == 1
    await cluster.finish("demo-s0-a2")
    await cluster.until_phase("Complete")


async def test_suspend_drains_through_the_reply_and_resume_goes_on(cluster: Cluster) -> None:
    await cluster.create_run(stages=[TRAIN])
    await cluster.until_running("demo-s0-a1")
    reply = await cluster.standin.report("demo-s0-a1", cluster.port, 5, reward_mean=0.25)
    assert reply.desired is Desired.RUN
    await cluster.kube.patch(RUNS, cluster.namespace, "demo", {"spec": {"suspend": True}})
    run = await cluster.until_phase("Draining")
    assert run["status"]["progress"]["display"] == "5/20", "with what had to be written; by itself it is not due yet"
    assert run["status"]["progress"]["reward"] == "0.25"
    reply = await cluster.standin.report("demo-s0-a1", cluster.port, 6)
    assert reply.desired is Desired.DRAIN
    assert reply.deadline_seconds is not None
    await cluster.standin.save("demo-s0-a1", 6)
    await cluster.standin.leave("demo-s0-a1", 75, "Drained")
    run = await cluster.until_phase("Suspended")
    assert run["status"]["latestCheckpoint"]["step"] == 6
    jobs, _ = await cluster.kube.list(RAYJOBS, cluster.namespace)
    assert jobs == []
    await cluster.kube.patch(RUNS, cluster.namespace, "demo", {"spec": {"suspend": False}})
    await cluster.finish("demo-s0-a2")
    await cluster.until_phase("Complete")


async def test_deletion_leaves_nothing_in_the_cluster_and_the_artifacts_as_asked(cluster: Cluster) -> None:
    created = await cluster.create_run(stages=[TRAIN], cleanup={"artifacts": "Delete"}, checkpoint={"drainSeconds": 1})
    await cluster.until_running("demo-s0-a1")
    await cluster.standin.save("demo-s0-a1", 10)
    await cluster.kube.delete(RUNS, cluster.namespace, "demo")

    async def gone() -> bool:
        left = await cluster.kube.find(RUNS, cluster.namespace, "demo")
        for resource in (RAYJOBS, POOLS, NETWORK_POLICIES):
            left = left or (await cluster.kube.list(resource, cluster.namespace))[0]
        maps, _ = await cluster.kube.list(CONFIGMAPS, cluster.namespace, "deepcoder.dev/run")
        return not left and not maps

    await wait_for("everything is gone", gone)
    uid = created["metadata"]["uid"]
    client: Any = cluster.s3.client()
    listed = client.list_objects_v2(Bucket=s3_server.BUCKET, Prefix=f"{cluster.namespace}/demo-{uid[:8]}/")
    assert listed["KeyCount"] == 0


async def test_run_at_rest_is_not_written_to(cluster: Cluster, kubeconfig: Path) -> None:
    await cluster.create_run(
        stages=[TRAIN, EVALUATE | {"evaluate": EVALUATE["evaluate"] | {"targets": ["Base"]}}], suspend=True
    )

    def rests(run: Object) -> bool:
        conditions = run.get("status", {}).get("conditions", [])
        return any(c["type"] == "Progressing" and c["reason"] == "Suspended" for c in conditions)

    await cluster.until("rest", rests)
    rested = datetime.now(UTC)
    for word in ("once", "twice"):
        await cluster.kube.patch(RUNS, cluster.namespace, "demo", {"metadata": {"labels": {"touched": word}}})
    await cluster.kube.patch(RUNS, cluster.namespace, "demo", {"spec": {"approvedStages": ["short"]}})
    await cluster.until("the spec was seen", lambda run: run["status"]["observedGeneration"] == 2)

    seen = datetime.now(UTC)

    def written(kind: Resource, since: datetime) -> list[str]:
        asked = [r for r in api_audit.requests(kubeconfig, cluster.account.user) if r.at > since]
        these = [r for r in asked if r.rights[0].resource.startswith(kind.plural)]
        return [f"{r.verb} {r.rights[0].resource}" for r in these if r.verb not in ("get", "list", "watch")]

    async def goes_on() -> bool:  # whatever else it would write of the run has had seconds to reach the log
        return len(written(LEASES, seen)) >= 2

    await wait_for("the operator has renewed its Lease twice", goes_on)
    assert written(RUNS, rested) == ["update deepcoderruns/status"], "for two labels and one spec, once it was seen"


async def test_judges_that_refuse_to_start_hold_no_gpu_and_their_words_stand_in_the_run(cluster: Cluster) -> None:
    words = "deepcoder-sandbox: the root is read-only: mount an emptyDir"
    pool = {"minReplicas": 0, "scaling": {"stabilizationSeconds": 0}}  # forgets its judges as soon as nobody wants one
    await cluster.create_run(
        stages=[TRAIN], failurePolicy={"maxAttempts": 1, "backoff": {"initialSeconds": 0}}, sandbox={"template": pool}
    )
    await cluster.until_running("demo-s0-a1")
    await wait_for("its own pool has a judge", lambda: judges_end(cluster, words))
    run = await cluster.until_reason("Accepted", "JudgesRefuseToStart")
    assert (await cluster.kube.list(RAYJOBS, cluster.namespace))[0] == []
    assert run["status"]["phase"] == "Pending"
    assert words in next(c["message"] for c in run["status"]["conditions"] if c["type"] == "Accepted")
    assert run["status"]["stages"][0]["message"].startswith("attempt 1: SandboxUnavailable: no GPU is held")
    assert words in run["status"]["stages"][0]["message"]
    mended = {"spec": {"image": "sandbox:mended"}}
    await cluster.kube.patch(POOLS, cluster.namespace, "demo-sandbox", mended)
    await wait_for("a judge of the mended pool is ready", lambda: judges_ready(cluster, "sandbox:mended"))
    await cluster.finish("demo-s0-a2")
    await cluster.until_phase("Complete")
    assert cluster.standin.seen == ["demo-s0-a1", "demo-s0-a2"]


async def judges_end(cluster: Cluster, words: str) -> bool:
    """The kubelet tells that each judge has refused to start three times; whether there is one."""
    ended = {"exitCode": 64, "reason": "Error", "message": words}
    waits = {"waiting": {"reason": "CrashLoopBackOff"}}
    judge = {"name": "judge", "image": "", "imageID": "", "ready": False, "restartCount": 2}
    container = judge | {"state": waits, "lastState": {"terminated": ended}}
    pods, _ = await cluster.kube.list(PODS, cluster.namespace, "deepcoder.dev/pool=demo-sandbox")
    for pod in pods:
        status = {"phase": "Running", "containerStatuses": [container]}
        await cluster.kube.patch(PODS, cluster.namespace, pod["metadata"]["name"], {"status": status}, "status")
    return bool(pods)


async def judges_ready(cluster: Cluster, image: str) -> bool:
    """The kubelet tells that each judge of an image is ready; whether there is one."""
    pods, _ = await cluster.kube.list(PODS, cluster.namespace, "deepcoder.dev/pool=demo-sandbox")
    pods = [
        p for p in pods if p["spec"]["containers"][0]["image"] == image and not p["metadata"].get("deletionTimestamp")
    ]
    for pod in pods:
        status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        await cluster.kube.patch(PODS, cluster.namespace, pod["metadata"]["name"], {"status": status}, "status")
    return bool(pods)
