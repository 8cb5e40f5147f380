"""Failures: how they are told apart, what follows, and what never burns an attempt."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_world import Cluster, condition_of, failed_of, make_run, reason, running

from deepcoder_contracts.api.failure import FailureReason
from deepcoder_contracts.api.run_status import Phase
from deepcoder_contracts.exit import ExitRecord
from deepcoder_operator.domain.classify import pod_failure
from deepcoder_operator.domain.conditions import find_condition
from deepcoder_operator.domain.world import PodView, RayJobView, StoredStage, pod_view


def test_crash_is_retried_after_a_pause_from_the_newest_checkpoint() -> None:
    cluster = running()
    cluster.save(10)
    cluster.leave(1)
    cluster.settle()
    assert cluster.run.status.phase is Phase.BACKOFF
    assert failed_of(cluster) is FailureReason.APPLICATION
    assert cluster.run.status.latest_checkpoint is not None
    cluster.advance(11)
    cluster.settle()
    assert cluster.name == "demo-s0-a2"


def test_pause_doubles_and_attempts_are_bounded() -> None:
    cluster = running()
    pauses = []
    for _ in range(3):
        cluster.leave(1)
        cluster.settle()
        if cluster.run.status.backoff is None:
            break
        pauses.append((cluster.run.status.backoff.until - cluster.now).total_seconds())
        cluster.advance(pauses[-1])
        cluster.settle()
        cluster.start_job()
        cluster.settle()
    assert pauses == [10, 20]
    assert cluster.run.status.phase is Phase.FAILED
    assert cluster.made == ["demo-s0-a1", "demo-s0-a2", "demo-s0-a3"]


def test_attempt_that_made_a_checkpoint_is_followed_by_the_first_pause_again() -> None:
    cluster = running(failurePolicy={"maxAttempts": 9})
    pauses = []
    for step in (0, 0, 5, 10, 0):
        if step:
            cluster.save(step)
            cluster.report(step)
            cluster.advance(20)
            cluster.settle()
        cluster.leave(1)
        cluster.settle()
        assert cluster.run.status.backoff is not None
        pauses.append((cluster.run.status.backoff.until - cluster.now).total_seconds())
        cluster.advance(pauses[-1])
        cluster.settle()
        cluster.start_job()
        cluster.settle()
    assert pauses == [10, 20, 10, 10, 20]


def test_failed_run_prints_the_way_forward() -> None:
    cluster = running(failurePolicy={"maxAttempts": 1})
    cluster.save(10)
    cluster.leave(1)
    cluster.settle()
    failed = find_condition(cluster.run.status.conditions, "Failed")
    assert failed is not None
    assert "spec.from: {uri: s3://deepcoder/ml/demo-01234567/short/step-000010.a001" in failed.message


def test_way_forward_is_printed_however_long_a_trainer_says_what_it_failed_of() -> None:
    cluster = running(failurePolicy={"maxAttempts": 1})
    cluster.save(10)
    cluster.leave(1)
    cluster.exits[1] = ExitRecord(code=1, reason="Crashed", message="a frame of its traceback " * 160)
    cluster.settle()
    (event,) = [e for e in cluster.events if e.reason == "Failed"]
    for told in (condition_of(cluster, "Failed").message, event.message):
        assert "exit.json: code 1, Crashed" in told
        assert "spec.from: {uri: s3://deepcoder/ml/demo-01234567/short/step-000010.a001, digest: 'sha256:" in told
        assert told.endswith("'}")


def test_what_follows_a_failure_is_said_however_long_a_trainer_says_what_it_failed_of() -> None:
    cluster = running()
    cluster.leave(1)
    cluster.exits[1] = ExitRecord(code=1, reason="Crashed", message="a frame of its traceback " * 160)
    cluster.settle()
    assert condition_of(cluster, "Progressing").message.endswith("(default: Retry); next attempt in 10 s")
    (event,) = [e for e in cluster.events if e.reason == "Application"]
    assert event.message.endswith("(default: Retry)")


def test_bad_configuration_is_never_retried() -> None:
    cluster = running(failurePolicy={"rules": [{"name": "all", "action": "RetryIgnoreLimit"}]})
    cluster.leave(64, "BadConfig")
    cluster.settle()
    assert cluster.run.status.phase is Phase.FAILED


def test_exit_75_that_nobody_asked_for_is_a_preemption() -> None:
    cluster = running()
    cluster.save(3)
    cluster.leave(75, "Drained")
    cluster.settle()
    assert failed_of(cluster) is FailureReason.PREEMPTED


def test_attempt_that_ends_says_why_in_the_same_write_as_it_is_over() -> None:
    """Whoever follows the run sees the phase of the status that says so, and no word of an attempt that runs."""
    cluster = running()
    cluster.pods[f"{cluster.name}-head"] = replace(cluster.pods[f"{cluster.name}-head"], restarts=1)
    cluster.step()
    assert cluster.run.status.phase is Phase.BACKOFF
    assert reason(cluster) == "Leaving"
    assert (
        "HeadLost: container of head pod demo-s0-a1-head was restarted" in condition_of(cluster, "Progressing").message
    )


def test_exit_75_for_lack_of_judges_is_a_sandbox_outage() -> None:
    cluster = running()
    cluster.leave(75, "SandboxUnavailable")
    cluster.settle()
    assert failed_of(cluster) is FailureReason.SANDBOX_UNAVAILABLE


@pytest.mark.parametrize("how", ["deleted", "replaced", "restarted", "ended"])
def test_another_head_is_another_attempt_whatever_the_job_says(how: str) -> None:
    cluster = running()
    name = f"{cluster.name}-head"
    head = cluster.pods.pop(name)
    if how == "replaced":
        cluster.pods["other-head"] = replace(head, name="other-head", uid="another")
    elif how == "restarted":
        cluster.pods[name] = replace(head, restarts=1)
    elif how == "ended":
        cluster.pods[name] = replace(head, phase="Failed", exit_code=137)
    assert cluster.jobs[cluster.name].job_status == "RUNNING"
    cluster.settle()
    assert failed_of(cluster) is FailureReason.HEAD_LOST
    assert not cluster.jobs


def test_memory_of_a_worker_is_remembered_after_its_pod_is_gone() -> None:
    cluster = running()
    head = cluster.pods[f"{cluster.name}-head"]
    cluster.pods["w"] = replace(head, name="w", uid="w", role="learner", terminated="OOMKilled", exit_code=137)
    cluster.settle()
    del cluster.pods["w"]
    cluster.leave(1, "Crashed")
    cluster.settle()
    assert failed_of(cluster) is FailureReason.OUT_OF_MEMORY


@pytest.mark.parametrize(
    "said",
    [
        'Usage of EmptyDir volume "shm" exceeds the limit "64Gi". ',
        "Pod ephemeral local storage usage exceeds the total limit of containers 200Gi. ",
        'Container ray-worker exceeded its local ephemeral storage limit "200Gi". ',
    ],
)
def test_pod_that_is_evicted_for_its_own_limit_counts_and_is_named_however_the_trainer_leaves(said: str) -> None:
    """A node that has room enough says so: the next attempt's pod would fill its limit as well, for ever."""
    cluster = running(failurePolicy={"maxAttempts": 1})
    head = cluster.pods[f"{cluster.name}-head"]
    evicted = replace(head, name="w", uid="w", role="learner", phase="Failed", reason="Evicted", message=said)
    cluster.pods["w"] = evicted
    cluster.settle()
    del cluster.pods["w"]
    cluster.leave(1, "Crashed")
    cluster.settle()
    assert cluster.run.status.phase is Phase.FAILED
    assert reason(cluster, "Failed") == FailureReason.APPLICATION
    assert f"pod w was evicted: {said.strip()}" in condition_of(cluster, "Failed").message


def test_why_a_pod_was_evicted_is_read_from_the_pod_whatever_its_container_ended_with() -> None:
    """A kubelet that no longer finds the container says so in its status; a template may have its log's end there."""
    end = {"reason": "ContainerStatusUnknown", "exitCode": 137, "message": "The container could not be located"}
    said = 'Usage of EmptyDir volume "shm" exceeds the limit "64Gi". '
    status = {"phase": "Failed", "reason": "Evicted", "message": said}
    containers = [{"name": "ray-worker", "state": {"terminated": end}}]
    pod = {"metadata": {"name": "w", "uid": "w"}, "status": status | {"containerStatuses": containers}}
    failure = pod_failure([pod_view(pod)])
    assert failure is not None
    assert (failure.reason, failure.evidence) == (FailureReason.APPLICATION, f"pod w was evicted: {said.strip()}")


def test_pod_that_is_evicted_since_its_node_is_short_of_disk_was_preempted() -> None:
    cluster = running(failurePolicy={"maxAttempts": 1})
    head = cluster.pods[f"{cluster.name}-head"]
    said = "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 9Gi. "
    cluster.pods["w"] = replace(head, name="w", uid="w", role="learner", reason="Evicted", message=said)
    cluster.settle()
    cluster.leave(1, "Crashed")
    cluster.settle()
    assert failed_of(cluster) is FailureReason.PREEMPTED


def test_job_message_names_a_broken_collective() -> None:
    cluster = running()
    cluster.change_job(job_status="FAILED", deployment_status="Failed", message="NCCL error: remote process exited")
    cluster.settle()
    assert failed_of(cluster) is FailureReason.COMMUNICATION


def test_success_without_a_manifest_is_a_failure() -> None:
    cluster = running()
    cluster.save(12)
    cluster.leave(0, "Completed")
    cluster.settle()
    assert failed_of(cluster) is FailureReason.MANIFEST_MISSING


def test_success_whose_manifest_is_rejected_says_why_although_no_exit_was_recorded() -> None:
    cluster = running()
    cluster.stored["short"] = StoredStage(rejected=("w.bin has checksum x, not y",))
    cluster.change_job(job_status="SUCCEEDED", deployment_status="Complete")
    cluster.settle()
    assert failed_of(cluster) is FailureReason.MANIFEST_MISSING
    assert "the job succeeded, but w.bin has checksum x, not y" in (cluster.run.status.stages[0].message or "")


def test_trainer_that_exits_with_a_failure_has_failed_of_that_whatever_its_job_says() -> None:
    cluster = running()
    cluster.write_exit(64, "BadConfig")
    cluster.change_job(job_status="SUCCEEDED", deployment_status="Complete")
    cluster.settle()
    assert reason(cluster, "Failed") == FailureReason.BAD_CONFIG


@pytest.mark.parametrize(
    ("disruption", "expected"),
    [
        ("PreemptionByScheduler", FailureReason.PREEMPTED),
        ("EvictionByEvictionAPI", FailureReason.PREEMPTED),
        ("TerminationByKubelet", FailureReason.PREEMPTED),
        ("DeletionByTaintManager", FailureReason.NODE_LOST),
        ("DeletionByPodGC", FailureReason.NODE_LOST),
    ],
)
def test_each_disruption_that_kubernetes_names_is_told_apart(disruption: str, expected: FailureReason) -> None:
    cluster = running()
    name = f"{cluster.name}-head"
    cluster.pods[name] = replace(cluster.pods[name], disruption=disruption, phase="Failed")
    cluster.settle()
    assert failed_of(cluster) is expected


def test_manifest_without_success_is_a_failure() -> None:
    cluster = running()
    cluster.save(20, final=True)
    cluster.change_job(job_status="FAILED", deployment_status="Failed", message="killed")
    cluster.settle()
    assert failed_of(cluster) is FailureReason.APPLICATION


def test_job_deleted_by_someone_is_a_lost_head() -> None:
    cluster = running()
    del cluster.jobs[cluster.name]
    cluster.pods = {}
    cluster.settle()
    assert failed_of(cluster) is FailureReason.HEAD_LOST


def test_rule_decides_by_reason_and_exit_code() -> None:
    rules = [
        {"name": "flaky", "onExitCodes": [42], "action": "RetryIgnoreLimit"},
        {"name": "memory", "onReasons": ["OutOfMemory"], "action": "FailRun"},
    ]
    cluster = running(failurePolicy={"maxAttempts": 1, "rules": rules})
    cluster.leave(42)
    cluster.settle()
    assert cluster.run.status.stages[0].failures == 0
    cluster.advance(600)
    cluster.settle()
    cluster.start_job()
    cluster.settle()
    cluster.leave(137, "OutOfMemory")
    cluster.settle()
    assert cluster.run.status.phase is Phase.FAILED


def test_job_refused_by_kuberay_fails_the_run_with_its_message() -> None:
    cluster = Cluster(make_run())
    cluster.settle()
    cluster.change_job(deployment_status="ValidationFailed", reason="ValidationFailed", message="worker group bad")
    cluster.settle()
    failed = find_condition(cluster.run.status.conditions, "Failed")
    assert failed is not None
    assert "worker group bad" in failed.message


def test_job_that_kuberay_has_given_up_before_it_ran_while_no_operator_did_never_started() -> None:
    cluster = Cluster(make_run())
    cluster.settle()
    cluster.change_job(deployment_status="Failed", reason="PreRunningDeadlineExceeded", message="no pod")
    cluster.settle()
    assert failed_of(cluster) is FailureReason.PRE_RUNNING_DEADLINE_EXCEEDED


def test_stray_job_of_ours_is_deleted_and_one_from_the_future_is_not() -> None:
    cluster = running()
    live = cluster.jobs[cluster.name]
    cluster.jobs["demo-s0-a0"] = RayJobView("demo-s0-a0", "old", live.owner_uid, 0)
    cluster.jobs["demo-s0-a9"] = RayJobView("demo-s0-a9", "new", live.owner_uid, 9)
    cluster.step()
    cluster.others_act()
    assert set(cluster.jobs) == {"demo-s0-a1", "demo-s0-a9"}


def test_unreadable_exit_record_leaves_the_evidence_from_outside() -> None:
    cluster = running()
    cluster.exits = {1: ExitRecord(code=0, reason="Completed")}
    cluster.pods.pop(f"{cluster.name}-head")
    cluster.settle()
    assert failed_of(cluster) is FailureReason.HEAD_LOST


def test_head_that_its_node_refuses_is_lost_with_the_nodes_words() -> None:
    """A GPU that was taken out of service, or a node that filled up meanwhile: the pod is gone when somebody looks."""
    cluster = Cluster(make_run())
    cluster.settle()
    cluster.start_job()
    cluster.settle()
    name = f"{cluster.name}-head"
    said = "Pod was rejected: Allocate failed due to requested number of devices unavailable for nvidia.com/gpu"
    cluster.pods[name] = replace(cluster.pods[name], phase="Failed", reason="UnexpectedAdmissionError", message=said)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.HEAD_LOST
    assert f"UnexpectedAdmissionError: {said}" in (cluster.run.status.stages[0].message or "")


def seen_pod(cluster: Cluster, name: str, controller: str | None, status: dict[str, object]) -> PodView:
    """A pod with a head's labels, as it is read."""
    labels = {"deepcoder.dev/ordinal": "1", "deepcoder.dev/role": "head"}
    owners = [{"uid": controller, "controller": True}] if controller else []
    meta = {"name": name, "uid": f"uid of {name}", "labels": labels, "ownerReferences": owners}
    return pod_view({"metadata": meta, "spec": {"containers": []}, "status": status})


@pytest.mark.parametrize("noted", [True, False], ids=["its head is known", "its head was not seen before"])
@pytest.mark.parametrize(
    "status",
    [{"phase": "Running"}, {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}],
    ids=["it runs", "it was evicted"],
)
def test_copy_of_the_head_that_somebody_debugs_is_not_the_attempts_head_and_is_left_alone(
    noted: bool, status: dict[str, object]
) -> None:
    """`kubectl debug --copy-to=… --keep-labels` makes a pod with the head's labels and without an owner."""
    cluster = Cluster(make_run())
    cluster.settle()
    cluster.start_job()
    head = f"{cluster.name}-head"
    cluster.pods[head] = replace(cluster.pods[head], controller="c")
    uid = cluster.pods[head].uid
    if noted:
        cluster.settle()
    cluster.pods["a-copy"] = seen_pod(cluster, "a-copy", None, status)
    cluster.settle()
    attempt = cluster.run.status.attempt
    assert attempt is not None
    assert (attempt.head_uid, attempt.reason) == (uid, None)
    assert cluster.run.status.phase is Phase.RUNNING
    assert not cluster.ended

    cluster.end_pod(head)
    cluster.settle()
    assert cluster.run.status.phase is Phase.BACKOFF
    assert "a-copy" in cluster.ended, "without its head, pods that their cluster has left behind look the same"


def test_head_that_its_cluster_has_left_behind_is_still_the_attempts() -> None:
    """`kubectl delete --cascade=orphan` takes the owner from a pod, and what has none may also be a copy."""
    cluster = running()
    head = cluster.pods[f"{cluster.name}-head"]
    assert head.controller is None
    cluster.pods["a-copy"] = seen_pod(cluster, "a-copy", None, {"phase": "Running"})
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING


def test_head_of_the_live_cluster_comes_before_that_of_another() -> None:
    cluster = running()
    head = f"{cluster.name}-head"
    cluster.pods[head] = replace(cluster.pods[head], controller="c")
    cluster.pods["a-copy"] = seen_pod(cluster, "a-copy", "a copied cluster", {"phase": "Running"})
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING
