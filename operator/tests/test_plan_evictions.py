"""Evictions, by whomever: the trainer has its time to save, and what comes after is told from what was before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from plan_evictions import evict
from plan_world import Cluster, failed_of, make_run, running

from deepcoder_contracts.api.failure import FailurePolicy, FailureReason
from deepcoder_contracts.api.run_status import Phase
from deepcoder_contracts.progress import Desired
from deepcoder_operator.domain.heartbeat import reply


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


def test_preemption_does_not_end_a_run_whose_bound_was_lowered_below_its_failures() -> None:
    """The next failure that counts does."""
    cluster = running(failurePolicy={"maxAttempts": 9})

    def fail(end: Callable[[], None]) -> None:
        end()
        cluster.settle()
        cluster.advance(600)
        cluster.settle()

    for _ in range(3):
        fail(lambda: cluster.leave(1))
        cluster.start_job()
        cluster.settle()
    cluster.edit(failure_policy=FailurePolicy(max_attempts=2))
    fail(lambda: evict(cluster))
    assert failed_of(cluster) is FailureReason.PREEMPTED
    assert cluster.run.status.phase is not Phase.FAILED
    cluster.start_job()
    cluster.settle()
    fail(lambda: cluster.leave(1))
    assert cluster.run.status.phase is Phase.FAILED


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


def test_job_that_came_and_was_deleted_unseen_is_not_made_again_while_its_head_may_live() -> None:
    cluster = Cluster(make_run())
    while not cluster.jobs:
        cluster.step()
    cluster.start_job()
    del cluster.jobs[cluster.name]
    cluster.settle()
    assert cluster.made == ["demo-s0-a1"]
    assert failed_of(cluster) is FailureReason.HEAD_LOST


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


def taint_node(cluster: Cluster, *, unreachable: bool = False) -> None:
    """The head's pod is deleted by the taint manager, and no kubelet ends it (yet)."""
    cluster.kubelet = False
    evict(cluster, "DeletionByTaintManager")
    head = f"{cluster.name}-head"
    cluster.pods[head] = replace(cluster.pods[head], unreachable=unreachable)


def test_head_on_a_lost_node_is_not_given_the_time_to_save() -> None:
    cluster = running(failurePolicy={"backoff": {"initialSeconds": 5}})
    cluster.report(1)
    cluster.settle()
    cluster.advance(300)
    taint_node(cluster, unreachable=True)
    cluster.settle()
    assert cluster.run.status.attempt is not None
    assert cluster.run.status.attempt.state == "Leaving"
    cluster.advance(60)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.NODE_LOST
    cluster.advance(5)
    cluster.settle()
    assert cluster.made == ["demo-s0-a1", "demo-s0-a2"], "a minute and not the time of two drains"


@pytest.mark.parametrize(("unreachable", "seconds"), [(True, 15), (False, 60)])
def test_head_on_a_tainted_node_is_given_the_time_to_save_until_it_is_silent(unreachable: bool, seconds: int) -> None:
    """A minute, where only the taint says that the node is lost: it is tainted for maintenance, too, and lives."""
    cluster = running()
    cluster.advance(300)
    cluster.report(1)
    taint_node(cluster, unreachable=unreachable)
    for _ in range(10):
        cluster.settle()
        assert cluster.run.status.phase is Phase.DRAINING
        cluster.advance(5)
        cluster.report(1)
    cluster.advance(seconds - 1)
    cluster.settle()
    assert cluster.run.status.phase is Phase.DRAINING
    assert cluster.decide().requeue_after <= 1
    cluster.advance(1)
    cluster.settle()
    assert cluster.run.status.attempt is not None
    assert cluster.run.status.attempt.state == "Leaving"


@pytest.mark.parametrize(("unreachable", "seconds"), [(True, 15), (False, 60)])
def test_silent_head_on_a_tainted_node_is_listened_for_since_its_reports_are_taken(
    unreachable: bool, seconds: int
) -> None:
    """After a restart of the operator nobody's are before the run was planned once, which may take a while."""
    cluster = running()
    cluster.advance(300)
    taint_node(cluster, unreachable=unreachable)
    cluster.watching_since, cluster.listening_since = cluster.now, None
    cluster.advance(100)
    cluster.settle()
    assert cluster.run.status.phase is Phase.DRAINING
    cluster.listening_since = cluster.now
    assert cluster.decide().requeue_after <= seconds
    cluster.advance(seconds)
    cluster.settle()
    assert cluster.run.status.attempt is not None
    assert cluster.run.status.attempt.state == "Leaving"
