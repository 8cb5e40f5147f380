"""Evictions, by whomever: the trainer has its time to save, and what comes after is told from what was before."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_world import Cluster, failed_of, make_run, reason, running
from run_manifests import TRAIN

from deepcoder_contracts.progress import Desired
from deepcoder_operator.api.failure import FailureReason
from deepcoder_operator.api.run_status import Phase
from deepcoder_operator.domain.heartbeat import reply
from deepcoder_operator.domain.world import PodView


def evict(cluster: Cluster, disruption: str = "EvictionByEvictionAPI") -> None:
    """The head's pod is deleted with its whole grace, in which its preStop hook has the trainer save."""
    name = f"{cluster.name}-head"
    cluster.pods[name] = replace(cluster.pods[name], disruption=disruption)
    cluster.end_pod(name)


def readmitted() -> Cluster:
    """A run that reported, saved and left when its queue took its quota back, and was admitted again."""
    cluster = running(scheduling={"queueName": "team"}, stages=[TRAIN | {"stallSeconds": 100}])
    cluster.advance(20)
    cluster.report(5)
    cluster.settle()
    cluster.kubelet = False
    cluster.change_job(suspended=True, job_status="", deployment_status="Suspended")
    cluster.settle()
    cluster.save(5)
    cluster.write_exit(75, "Drained")
    cluster.kubelet = True
    cluster.settle()
    cluster.advance(3600)
    cluster.change_job(suspended=False, deployment_status="Initializing")
    cluster.settle()
    return cluster


@pytest.mark.parametrize("disruption", ["PreemptionByScheduler", "EvictionByEvictionAPI", "TerminationByKubelet"])
def test_preemption_never_burns_an_attempt(disruption: str) -> None:
    cluster = running(failurePolicy={"maxAttempts": 1})
    for _ in range(3):
        evict(cluster, disruption)
        cluster.settle()
        assert failed_of(cluster) is FailureReason.PREEMPTED
        cluster.advance(600)
        cluster.settle()
        cluster.start_job()
        cluster.settle()
    assert cluster.run.status.stages[0].failures == 0
    assert cluster.run.status.stages[0].preemptions == 3


def test_evicted_head_has_time_to_save_before_anything_is_deleted() -> None:
    cluster = running()
    cluster.kubelet = False
    evict(cluster)
    cluster.settle()
    assert cluster.run.status.phase is Phase.DRAINING
    assert not cluster.jobs[cluster.name].deleting
    assert cluster.ended == [], "the pod keeps its grace"
    answer = reply(cluster.run.status, cluster.now)
    assert (answer.desired, answer.deadline_seconds) == (Desired.DRAIN, 300)
    cluster.advance(120)
    cluster.save(7)
    cluster.write_exit(75, "Drained")
    cluster.step()
    assert cluster.jobs[cluster.name].deleting
    cluster.kubelet = True
    cluster.settle()
    assert failed_of(cluster) is FailureReason.PREEMPTED
    assert cluster.run.status.latest_checkpoint is not None
    assert cluster.run.status.latest_checkpoint.step == 7


def test_evicted_head_that_does_not_save_is_not_waited_for_for_ever() -> None:
    cluster = running()
    cluster.kubelet = False
    evict(cluster)
    cluster.settle()
    cluster.advance(300)
    cluster.settle()
    assert not cluster.jobs
    cluster.kubelet = True
    cluster.settle()
    assert failed_of(cluster) is FailureReason.PREEMPTED


def test_head_that_somebody_deletes_while_it_starts_is_a_lost_head() -> None:
    cluster = Cluster(make_run())
    cluster.settle()
    cluster.start_job()
    cluster.change_job(job_status="", deployment_status="Initializing")
    cluster.settle()
    cluster.end_pod(f"{cluster.name}-head")
    cluster.settle()
    assert failed_of(cluster) is FailureReason.HEAD_LOST


def test_stage_that_ends_while_its_head_is_evicted_is_passed() -> None:
    cluster = running()
    cluster.kubelet = False
    evict(cluster)
    cluster.settle()
    cluster.save(20, final=True)
    cluster.write_exit(0, "Completed")
    cluster.kubelet = True
    cluster.settle()
    assert cluster.name == "demo-s1-a2"


@pytest.mark.parametrize("kuberay", [True, False])
def test_job_deleted_by_someone_has_time_to_save_as_long_as_its_head_lives(kuberay: bool) -> None:
    cluster = running()
    cluster.kubelet = False
    cluster.kuberay = kuberay
    cluster.change_job(deleting=True)
    cluster.settle()
    assert cluster.run.status.phase is Phase.DRAINING
    assert reply(cluster.run.status, cluster.now).desired is Desired.DRAIN
    assert cluster.ended == [], "the pod keeps its grace"
    cluster.save(7)
    cluster.write_exit(75, "Drained")
    cluster.settle()
    cluster.kubelet = cluster.kuberay = True
    cluster.settle()
    assert failed_of(cluster) is FailureReason.PREEMPTED
    assert cluster.run.status.latest_checkpoint is not None
    assert cluster.run.status.latest_checkpoint.step == 7


def test_job_deleted_by_someone_is_not_waited_for_for_ever() -> None:
    cluster = running()
    cluster.kubelet = cluster.kuberay = False
    cluster.change_job(deleting=True)
    cluster.settle()
    cluster.advance(300)
    cluster.settle()
    assert cluster.run.status.attempt is not None
    assert cluster.run.status.attempt.state == "Leaving"
    cluster.advance(360)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.HEAD_LOST


def test_queue_that_evicts_takes_over_from_the_drain_of_its_heads_eviction() -> None:
    """KubeRay deletes the pods of a suspended job; their deletion may be seen before the suspension."""
    cluster = running(scheduling={"queueName": "team"})
    cluster.kubelet = False
    evict(cluster)
    cluster.settle()
    cluster.change_job(suspended=True, job_status="", deployment_status="Suspended")
    cluster.kubelet = True
    cluster.settle()
    assert cluster.run.status.phase is Phase.QUEUED
    cluster.change_job(suspended=False)
    cluster.start_job()
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING
    cluster.leave(1)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.APPLICATION


def test_queued_job_waits_for_quota_and_eviction_is_no_failure() -> None:
    cluster = Cluster(make_run(scheduling={"queueName": "team"}))
    cluster.settle()
    cluster.change_job(suspended=True)
    cluster.settle()
    assert cluster.run.status.phase is Phase.QUEUED
    assert reason(cluster, "QuotaReserved") == "Waiting"
    cluster.change_job(suspended=False)
    cluster.start_job()
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING
    cluster.change_job(suspended=True, job_status="", deployment_status="Suspended")
    cluster.pods = {}
    cluster.settle()
    assert cluster.run.status.phase is Phase.QUEUED
    assert cluster.run.status.stages[0].failures == 0
    cluster.change_job(suspended=False)
    cluster.start_job()
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING
    assert cluster.made == ["demo-s0-a1"]


def test_readmitted_attempt_runs_when_its_own_head_says_so() -> None:
    cluster = readmitted()
    assert cluster.run.status.phase is Phase.STARTING
    old = PodView("demo-s0-a1-old-head", "head-1", "head", 1)
    cluster.report(6, pod=old)
    cluster.settle()
    assert cluster.run.status.phase is Phase.STARTING
    cluster.start_job()
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING
    assert cluster.run.status.attempt is not None
    assert cluster.run.status.attempt.running_time == cluster.now


def test_crash_of_a_readmitted_attempt_is_no_preemption_though_the_first_head_left_with_75() -> None:
    cluster = readmitted()
    cluster.start_job()
    cluster.settle()
    cluster.change_job(job_status="FAILED", deployment_status="Failed", message="killed")
    cluster.settle()
    assert failed_of(cluster) is FailureReason.APPLICATION


def test_readmitted_attempt_is_drained_until_its_own_head_has_left() -> None:
    cluster = readmitted()
    cluster.start_job()
    cluster.settle()
    cluster.edit(suspend=True)
    cluster.settle()
    assert cluster.run.status.phase is Phase.DRAINING
    cluster.write_exit(75, "Drained")
    cluster.settle()
    assert cluster.run.status.phase is Phase.SUSPENDED
