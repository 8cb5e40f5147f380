"""Judges that refuse to start are no fault of the run, which burns no attempt for them and has its pool try again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from plan_judges import PULL, WORDS, refusing, without_judges
from plan_world import Cluster, condition_of, failed_of, reason, running
from run_manifests import TRAIN

from deepcoder_contracts.api.failure import FailureReason
from deepcoder_contracts.api.run_status import Phase
from deepcoder_operator.domain.judge_outage import waits_for_judges
from deepcoder_operator.domain.pool_status import STUCK_REASONS
from deepcoder_operator.domain.world import PoolView


def refused_after_a_judge_was_ready(cluster: Cluster, saved: int = 0) -> None:
    """Another attempt runs, since a judge is ready, perhaps to a checkpoint, and then all refuse."""
    assert cluster.pool is not None
    cluster.pool = replace(cluster.pool, ready=True, stuck_reason="")
    cluster.advance(600)
    cluster.settle()
    cluster.start_job()
    cluster.settle()
    if saved:
        cluster.save(saved)
        cluster.report(saved)
        cluster.advance(20)
        cluster.settle()
    cluster.pool = refusing(cluster.pool)
    cluster.settle()


def test_judges_that_refuse_burn_no_attempt_until_they_have_done_so_ten_times_in_a_row() -> None:
    """Not the run's fault; but each time its GPUs were had for nothing."""
    cluster = running(stages=[TRAIN], failurePolicy={"maxAttempts": 2})
    for _ in range(10):
        refused_after_a_judge_was_ready(cluster)
        assert cluster.run.status.stages[0].failures == 0
        assert "(default: RetryIgnoreLimit)" in condition_of(cluster, "Progressing").message
    refused_after_a_judge_was_ready(cluster)
    assert cluster.run.status.stages[0].failures == 1
    refused_after_a_judge_was_ready(cluster)
    assert cluster.run.status.phase is Phase.FAILED
    assert WORDS in condition_of(cluster, "Failed").message


def test_refusals_between_which_the_run_got_on_are_no_row() -> None:
    cluster = running(stages=[TRAIN], failurePolicy={"maxAttempts": 1})
    for step in range(1, 15):
        refused_after_a_judge_was_ready(cluster, saved=step)
    assert cluster.run.status.phase is Phase.BACKOFF


def test_trainer_that_left_first_for_judges_that_refuse_burns_no_attempt_either() -> None:
    cluster = running(stages=[TRAIN])
    cluster.leave(75, "SandboxUnavailable")
    cluster.pool = refusing(cluster.pool)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.SANDBOX_UNAVAILABLE
    assert cluster.run.status.stages[0].failures == 0


@pytest.mark.parametrize("reason", sorted(STUCK_REASONS))
@pytest.mark.parametrize("first", ["operator", "trainer"])
def test_whatever_a_pool_says_that_somebody_has_to_mend_burns_no_attempt(reason: str, first: str) -> None:
    """A name that is taken is no more the run's fault than a kernel that confines nothing."""
    cluster = running(stages=[TRAIN])
    if first == "trainer":
        cluster.leave(75, "SandboxUnavailable")
    cluster.pool = replace(refusing(cluster.pool), stuck_reason=reason)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.SANDBOX_UNAVAILABLE
    assert cluster.run.status.stages[0].failures == 0


def test_refusal_that_was_mended_while_the_attempt_left_burns_none() -> None:
    cluster = running(stages=[TRAIN])
    cluster.kubelet = False
    cluster.pool = refusing(cluster.pool)
    cluster.settle()
    cluster.pool = replace(cluster.pool, ready=True, stuck_reason="")
    cluster.kubelet = True
    cluster.settle()
    assert failed_of(cluster) is FailureReason.SANDBOX_UNAVAILABLE
    assert cluster.run.status.stages[0].failures == 0


@pytest.mark.parametrize(("action", "phase"), [("FailRun", Phase.FAILED), ("Retry", Phase.BACKOFF)])
def test_rule_may_give_a_run_up_whose_judges_refuse_and_has_no_attempt_burnt(action: str, phase: Phase) -> None:
    rules = [{"name": "judges", "onReasons": ["SandboxUnavailable"], "action": action}]
    cluster = running(stages=[TRAIN], failurePolicy={"maxAttempts": 1, "rules": rules})
    cluster.pool = refusing(cluster.pool)
    cluster.settle()
    assert cluster.run.status.phase is phase


def test_judges_that_are_missing_burn_an_attempt() -> None:
    cluster = running(stages=[TRAIN])
    without_judges(cluster)
    cluster.leave(75, "SandboxUnavailable")
    cluster.settle()
    assert cluster.run.status.stages[0].failures == 1


def test_run_that_waits_for_judges_wants_one_until_it_has_its_attempt() -> None:
    cluster = running(stages=[TRAIN])
    assert not waits_for_judges(cluster.run)
    cluster.pool = refusing(cluster.pool)
    cluster.settle()
    cluster.advance(11)
    cluster.settle()
    assert waits_for_judges(cluster.run)
    cluster.pool = replace(cluster.pool, ready=True, stuck_reason="")
    cluster.settle()
    assert cluster.run.status.attempt is not None
    assert not waits_for_judges(cluster.run)


@pytest.mark.parametrize("end", [lambda cluster: cluster.edit(suspend=True), Cluster.delete])
def test_run_that_waited_for_judges_and_is_suspended_or_deleted_wants_none(end: Callable[[Cluster], None]) -> None:
    cluster = running(stages=[TRAIN])
    cluster.pool = refusing(cluster.pool)
    cluster.settle()
    cluster.advance(11)
    cluster.settle()
    end(cluster)
    cluster.settle()
    assert not waits_for_judges(cluster.run)


@pytest.mark.parametrize("lost", [refusing, lambda pool: replace(pool, ready=False, message=PULL)])
def test_pool_that_has_scaled_to_zero_since_its_judges_failed_is_no_reason_to_ask_for_gpus(
    lost: Callable[[PoolView | None], PoolView],
) -> None:
    """It is ready by its own account, and knows nothing of its judges: one is wanted, and waited for."""
    cluster = running(stages=[TRAIN])
    cluster.pool = lost(cluster.pool)
    cluster.leave(75, "SandboxUnavailable")
    cluster.settle()
    cluster.pool = replace(cluster.pool, ready=True, stuck_reason="", idle=True, message="scaled to zero")
    cluster.advance(600)
    cluster.settle()
    assert cluster.made == ["demo-s0-a1"]
    assert reason(cluster, "Accepted") == "JudgesNotReady"
    assert waits_for_judges(cluster.run)
    cluster.pool = replace(cluster.pool, idle=False)
    cluster.settle()
    assert cluster.made == ["demo-s0-a1", "demo-s0-a2"]
