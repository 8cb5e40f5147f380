"""Quota that a queue gives and takes back: what counts as preempted, and that no two heads write under one ordinal."""

from __future__ import annotations

import pytest
from plan_evictions import evict, queue_takes_its_quota_back
from plan_world import Cluster, condition_of, failed_of, make_run, reason, running

from deepcoder_contracts.api.failure import FailureReason
from deepcoder_contracts.api.run_status import Phase
from deepcoder_contracts.progress import Desired
from deepcoder_operator.domain.eviction import EVENT_SECONDS
from deepcoder_operator.domain.heartbeat import reply
from deepcoder_operator.domain.world import PodView


def test_queue_that_evicts_has_the_drain_of_its_heads_eviction_go_on() -> None:
    """KubeRay deletes the pods of a suspended job; their deletion may be seen before the suspension."""
    cluster = running(scheduling={"queueName": "team"})
    cluster.kubelet = False
    evict(cluster, disruption="")
    cluster.settle()
    assert cluster.run.status.attempt is not None
    deadline = cluster.run.status.attempt.drain_deadline
    cluster.advance(30)
    queue_takes_its_quota_back(cluster)
    cluster.settle()
    assert cluster.run.status.phase is Phase.DRAINING
    assert cluster.run.status.attempt.drain_deadline == deadline
    cluster.kubelet = True
    cluster.settle()
    assert failed_of(cluster) is FailureReason.PREEMPTED


def test_queued_job_waits_for_quota_and_asks_again_under_the_next_ordinal_when_it_is_taken_back() -> None:
    cluster = Cluster(make_run(scheduling={"queueName": "team"}, failurePolicy={"maxAttempts": 1}))
    cluster.settle()
    assert cluster.run.status.phase is Phase.QUEUED
    assert reason(cluster, "QuotaReserved") == "Waiting"
    cluster.change_job(suspended=False)
    cluster.start_job()
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING
    queue_takes_its_quota_back(cluster)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.PREEMPTED
    stage = cluster.run.status.stages[0]
    assert (stage.failures, stage.preemptions) == (0, 1)
    cluster.advance(600)
    cluster.settle()
    assert cluster.made == ["demo-s0-a1", "demo-s0-a2"]


def test_run_that_waits_in_the_wrong_queue_asks_the_right_one_when_its_spec_names_it() -> None:
    cluster = Cluster(make_run(scheduling={"queueName": "teem"}, failurePolicy={"maxAttempts": 1}))
    cluster.settle()
    assert reason(cluster) == "WaitingForQuota"
    cluster.change_job(queue="rewritten-by-a-policy")
    cluster.settle()
    assert cluster.made == ["demo-s0-a1"], "a policy that renames queues changes nothing"
    cluster.edit(scheduling=cluster.run.spec.scheduling.model_copy(update={"queue_name": "team"}))
    cluster.settle()
    assert cluster.made == ["demo-s0-a1", "demo-s0-a2"]
    assert cluster.jobs[cluster.name].queue == "team"
    assert reason(cluster) == "WaitingForQuota"
    assert cluster.run.status.stages[0].failures == 0


def test_job_that_is_suspended_though_its_run_has_no_queue_is_told_and_given_up() -> None:
    """Kueue's manageJobsWithoutQueueName suspends it, and no queue would ever admit it."""
    cluster = Cluster(make_run(failurePolicy={"maxAttempts": 1}))
    while not cluster.made:
        cluster.step()
    cluster.change_job(suspended=True)
    cluster.settle()
    assert reason(cluster) == "NoQueue"
    assert "set scheduling.queueName" in condition_of(cluster, "Progressing").message
    cluster.change_job(queue="default")
    cluster.settle()
    assert reason(cluster) == "WaitingForQuota", "Kueue has put it into the namespace's default queue"
    cluster.change_job(queue="")
    cluster.advance(cluster.run.spec.stages[0].pre_running_deadline_seconds)
    cluster.settle()
    assert cluster.run.status.phase is Phase.FAILED
    assert reason(cluster, "Failed") == "PreRunningDeadlineExceeded"


def admitted(cluster: Cluster) -> None:
    """Its queue admits the live attempt, whose head waits for a node."""
    cluster.change_job(suspended=False)
    ordinal = cluster.run.status.ordinal
    waits = "Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    cluster.pods["head"] = PodView("head", f"head-{ordinal}", "head", ordinal, phase="Pending", waiting=waits)
    cluster.settle()
    assert cluster.run.status.phase is Phase.STARTING


def test_queue_that_waits_for_pods_in_vain_is_no_preemption_and_has_a_bound() -> None:
    """Kueue counts its requeues by Workload, and each attempt has its own: it would never give up."""
    cluster = Cluster(make_run(scheduling={"queueName": "team"}, failurePolicy={"maxAttempts": 1}))
    cluster.withdrawal = "Exceeded the PodsReady timeout ml/rayjob-demo-s0-a1-4fd2c"
    cluster.settle()
    for failed in range(1, 12):
        admitted(cluster)
        queue_takes_its_quota_back(cluster)
        cluster.settle()
        stage = cluster.run.status.stages[0]
        assert (stage.failures, stage.preemptions) == (int(failed > 10), 0)
        assert stage.message is not None
        assert "PreRunningDeadlineExceeded" in stage.message
        assert "3 Insufficient nvidia.com/gpu" in stage.message, "why they were not ready"
        assert cluster.withdrawal in stage.message, "and who gave them no more time"
        cluster.advance(600)
        cluster.settle()
    assert cluster.run.status.phase is Phase.FAILED


@pytest.mark.parametrize("said", ["", "Preempted to accommodate a workload (UID: 7) due to prioritization"])
def test_queue_that_takes_its_quota_back_from_a_starting_attempt_for_another_run_preempts_it(said: str) -> None:
    cluster = Cluster(make_run(scheduling={"queueName": "team"}, failurePolicy={"maxAttempts": 1}))
    cluster.withdrawal = said
    cluster.settle()
    for _ in range(12):
        admitted(cluster)
        queue_takes_its_quota_back(cluster)
        cluster.settle()
        cluster.advance(EVENT_SECONDS)
        cluster.settle()
        assert failed_of(cluster) is FailureReason.PREEMPTED
        assert said in (cluster.run.status.stages[0].message or "")
        cluster.advance(600)
        cluster.settle()
    assert cluster.run.status.stages[0].failures == 0


def test_what_the_queue_says_a_moment_after_it_took_its_quota_back_counts() -> None:
    """Kueue suspends the job first, and posts its event then."""
    cluster = Cluster(make_run(scheduling={"queueName": "team"}, failurePolicy={"maxAttempts": 1}))
    cluster.settle()
    admitted(cluster)
    queue_takes_its_quota_back(cluster)
    cluster.settle()
    cluster.advance(1)
    cluster.withdrawal = "Exceeded the PodsReady timeout ml/rayjob-demo-s0-a1-4fd2c"
    cluster.settle()
    assert failed_of(cluster) is FailureReason.PRE_RUNNING_DEADLINE_EXCEEDED


def test_job_whose_quota_is_taken_back_goes_at_once_while_its_head_still_saves() -> None:
    """Its queue would admit the same RayJob again, and a second head would write under the first one's ordinal."""
    cluster = running(scheduling={"queueName": "team"})
    cluster.kubelet = False
    queue_takes_its_quota_back(cluster)
    decided = cluster.step()
    assert [type(a).__name__ for a in decided.actions] == ["DeleteRayJob"]
    assert cluster.jobs["demo-s0-a1"].deleting
    cluster.settle()
    assert cluster.run.status.phase is Phase.DRAINING
    assert reply(cluster.run.status, cluster.now).desired is Desired.DRAIN
    assert cluster.made == ["demo-s0-a1"], "the next attempt waits for what this one saves"
    cluster.save(7)
    cluster.write_exit(75, "Drained")
    cluster.settle()
    cluster.kubelet = True
    cluster.settle()
    assert failed_of(cluster) is FailureReason.PREEMPTED
    assert cluster.run.status.latest_checkpoint is not None
    assert cluster.run.status.latest_checkpoint.step == 7
    told = cluster.run.status.stages[0].message
    assert told is not None
    assert "Preempted" in told


def test_job_whose_deletion_was_lost_with_the_operator_goes_though_its_queue_has_admitted_it_again() -> None:
    cluster = running(scheduling={"queueName": "team"})
    cluster.kubelet = False
    queue_takes_its_quota_back(cluster)
    cluster.step(0)
    cluster.change_job(suspended=False, deployment_status="Initializing")
    decided = cluster.step()
    assert [type(a).__name__ for a in decided.actions] == ["DeleteRayJob"]


def test_quota_that_came_and_went_unseen_ends_the_attempt_too() -> None:
    cluster = Cluster(make_run(scheduling={"queueName": "team"}))
    cluster.settle()
    cluster.start_job()
    queue_takes_its_quota_back(cluster)
    decided = cluster.step()
    assert [type(a).__name__ for a in decided.actions] == ["SavePostMortem", "DeleteRayJob"]
    cluster.settle()
    cluster.advance(EVENT_SECONDS)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.PREEMPTED


def test_head_that_does_not_save_when_its_quota_is_taken_back_has_only_its_time() -> None:
    cluster = running(scheduling={"queueName": "team"}, failurePolicy={"maxAttempts": 1})
    cluster.kubelet = False
    queue_takes_its_quota_back(cluster)
    cluster.settle()
    cluster.advance(300)
    cluster.settle()
    assert cluster.run.status.attempt is not None
    assert cluster.run.status.attempt.state == "Leaving"
    cluster.kubelet = True
    cluster.settle()
    assert failed_of(cluster) is FailureReason.PREEMPTED


def test_quota_that_is_taken_back_before_the_program_ran_costs_no_attempt() -> None:
    cluster = Cluster(make_run(scheduling={"queueName": "team"}, failurePolicy={"maxAttempts": 1}))
    cluster.settle()
    cluster.change_job(suspended=False)
    cluster.settle()
    assert reason(cluster, "QuotaReserved") == "Admitted"
    queue_takes_its_quota_back(cluster)
    cluster.settle()
    cluster.advance(EVENT_SECONDS)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.PREEMPTED
    assert cluster.run.status.stages[0].failures == 0


def test_run_that_is_suspended_while_its_quota_is_taken_back_is_suspended() -> None:
    cluster = running(scheduling={"queueName": "team"})
    cluster.edit(suspend=True)
    queue_takes_its_quota_back(cluster)
    cluster.settle()
    assert cluster.run.status.phase is Phase.SUSPENDED
    assert cluster.run.status.backoff is None
