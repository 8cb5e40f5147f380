"""Pods that an attempt loses and survives: they explain a failure that follows at once, and none that comes later."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_evictions import evict, queue_takes_its_quota_back
from plan_world import Cluster, condition_of, failed_of, reason, running
from run_manifests import TRAIN

from deepcoder_contracts.api.failure import FailureReason
from deepcoder_contracts.api.run_status import Phase

OFF_POLICY = 1
"""The recipe's default maxOffPolicy."""
SURVIVED = OFF_POLICY + 3
"""Steps after which a lost pod explains nothing any more."""


def lose_sampler(cluster: Cluster, *, disruption: str = "PreemptionByScheduler", terminated: str = "") -> None:
    """A sampler's pod fails, is seen, and is gone; its replacement is well."""
    head = cluster.pods[f"{cluster.name}-head"]
    sampler = replace(head, name="sampler", uid="sampler", role="sampler")
    cluster.pods["sampler"] = replace(sampler, disruption=disruption, terminated=terminated, phase="Failed")
    cluster.settle()
    cluster.pods["sampler"] = replace(sampler, uid="sampler-2")


def reach(cluster: Cluster, step: int) -> None:
    """The trainer reports a step."""
    cluster.advance(20)
    cluster.report(step)
    cluster.settle()


def noted(cluster: Cluster) -> FailureReason | None:
    """What the live attempt is known to suffer of."""
    assert cluster.run.status.attempt is not None
    return cluster.run.status.attempt.reason


def after_a_loss(steps: int, **spec: object) -> Cluster:
    """An attempt that lost a preempted sampler at step 5, and has made so many steps since."""
    cluster = running(**spec)
    reach(cluster, 5)
    lose_sampler(cluster)
    assert noted(cluster) is FailureReason.PREEMPTED
    if steps:
        reach(cluster, 5 + steps)
    return cluster


def test_crash_long_after_a_sampler_was_replaced_counts() -> None:
    cluster = after_a_loss(SURVIVED, failurePolicy={"maxAttempts": 1})
    assert noted(cluster) is None
    cluster.leave(1)
    cluster.settle()
    assert cluster.run.status.phase is Phase.FAILED
    assert reason(cluster, "Failed") == FailureReason.APPLICATION
    assert "sampler" not in condition_of(cluster, "Failed").message
    assert cluster.run.status.stages[0].preemptions == 0


@pytest.mark.parametrize("steps", [0, 1, SURVIVED - 1])
def test_crash_soon_after_a_sampler_was_preempted_is_a_preemption(steps: int) -> None:
    """The step under way and those that were sampled before still end; it is the one after them that fails."""
    cluster = after_a_loss(steps, failurePolicy={"maxAttempts": 1})
    cluster.leave(1)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.PREEMPTED
    assert cluster.run.status.stages[0].failures == 0


def test_the_further_ahead_a_run_samples_the_longer_a_loss_may_matter() -> None:
    cluster = after_a_loss(SURVIVED, recipe={"maxOffPolicy": 8})
    assert noted(cluster) is FailureReason.PREEMPTED
    reach(cluster, 5 + 8 + 3)
    assert noted(cluster) is None


def test_crash_long_after_a_sampler_ran_out_of_memory_does_not_end_a_run_whose_rule_says_so() -> None:
    rules = [{"name": "memory", "onReasons": ["OutOfMemory"], "action": "FailRun"}]
    cluster = running(failurePolicy={"rules": rules})
    reach(cluster, 5)
    lose_sampler(cluster, disruption="", terminated="OOMKilled")
    assert noted(cluster) is FailureReason.OUT_OF_MEMORY
    reach(cluster, 5 + SURVIVED)
    cluster.leave(1)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.APPLICATION


def test_loss_before_the_first_report_is_not_forgotten_since_the_attempt_goes_on_from_a_late_step() -> None:
    cluster = running()
    lose_sampler(cluster)
    reach(cluster, 100)
    assert noted(cluster) is FailureReason.PREEMPTED
    reach(cluster, 100 + SURVIVED)
    assert noted(cluster) is None


def test_pod_that_saves_while_it_is_evicted_is_not_survived_as_long_as_it_is_there() -> None:
    """A learner trains on in its grace, and the attempt ends when it does."""
    cluster = running()
    reach(cluster, 5)
    head = cluster.pods[f"{cluster.name}-head"]
    leaving = replace(head, name="w", uid="w", role="learner", disruption="EvictionByEvictionAPI", deleting=True)
    cluster.kubelet = False
    cluster.pods["w"] = leaving
    cluster.settle()
    reach(cluster, 5 + SURVIVED)
    del cluster.pods["w"]
    reach(cluster, 5 + SURVIVED + 1)
    cluster.leave(1)
    cluster.kubelet = True
    cluster.settle()
    assert failed_of(cluster) is FailureReason.PREEMPTED


def test_head_that_is_killed_for_memory_is_not_the_preemption_of_a_sampler() -> None:
    cluster = after_a_loss(0, failurePolicy={"maxAttempts": 1})
    head = f"{cluster.name}-head"
    cluster.pods[head] = replace(cluster.pods[head], phase="Failed", terminated="OOMKilled", exit_code=137)
    cluster.settle()
    assert reason(cluster, "Failed") == FailureReason.OUT_OF_MEMORY
    assert f"pod {head} was killed for memory" in condition_of(cluster, "Failed").message


def test_head_that_is_lost_long_after_a_sampler_was_replaced_is_a_lost_head() -> None:
    cluster = after_a_loss(SURVIVED)
    del cluster.pods[f"{cluster.name}-head"]
    cluster.settle()
    assert failed_of(cluster) is FailureReason.HEAD_LOST


def test_evicted_head_that_runs_out_of_memory_while_it_saves_was_preempted() -> None:
    cluster = running()
    cluster.kubelet = False
    evict(cluster)
    cluster.settle()
    head = f"{cluster.name}-head"
    cluster.pods[head] = replace(cluster.pods[head], phase="Failed", terminated="OOMKilled", exit_code=137)
    cluster.kubelet = True
    cluster.settle()
    assert failed_of(cluster) is FailureReason.PREEMPTED


def test_attempt_whose_queue_takes_its_quota_back_was_preempted_whatever_it_still_reports() -> None:
    cluster = running(scheduling={"queueName": "team"})
    reach(cluster, 5)
    cluster.kuberay = False
    queue_takes_its_quota_back(cluster)
    cluster.step()
    for steps in (1, SURVIVED, 2 * SURVIVED):
        cluster.advance(20)
        cluster.report(5 + steps)
        cluster.step()
    cluster.kuberay = True
    cluster.settle()
    assert cluster.run.status.stages[0].preemptions == 1


def test_success_after_a_loss_needs_no_post_mortem() -> None:
    cluster = after_a_loss(0, stages=[TRAIN])
    cluster.save(20, final=True)
    cluster.leave(0, "Completed")
    cluster.settle()
    assert cluster.run.status.phase is Phase.COMPLETE
    assert cluster.post_mortems == []
