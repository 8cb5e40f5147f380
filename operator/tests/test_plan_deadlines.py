"""What bounds an attempt that nothing else ends: its time to start, its stage's deadline, its time for a step."""

from __future__ import annotations

import pytest
from plan_world import Cluster, failed_of, make_run, reason, running
from run_manifests import TRAIN

from deepcoder_contracts.api.failure import FailureReason
from deepcoder_contracts.api.run_status import Phase
from deepcoder_contracts.exit import ExitRecord
from deepcoder_contracts.progress import TrainerPhase
from deepcoder_operator.domain.conditions import find_condition


def test_job_that_never_starts_is_bounded_from_the_grant_of_quota() -> None:
    cluster = Cluster(make_run(stages=[TRAIN | {"preRunningDeadlineSeconds": 60}], scheduling={"queueName": "team"}))
    cluster.settle()
    cluster.advance(3600)
    cluster.settle()
    cluster.change_job(suspended=False)
    cluster.settle()
    cluster.advance(59)
    cluster.settle()
    assert cluster.run.status.phase is Phase.STARTING
    cluster.advance(1)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.PRE_RUNNING_DEADLINE_EXCEEDED


def test_active_deadline_fails_the_run() -> None:
    cluster = running(stages=[TRAIN | {"activeDeadlineSeconds": 100}])
    cluster.advance(100)
    cluster.settle()
    assert cluster.run.status.phase is Phase.FAILED


def test_active_deadline_does_not_count_the_time_that_the_run_was_suspended() -> None:
    cluster = running(stages=[TRAIN | {"activeDeadlineSeconds": 100}])
    cluster.advance(60)
    cluster.edit(suspend=True)
    cluster.settle()
    cluster.save(5)
    cluster.leave(75, "Drained")
    cluster.settle()
    cluster.advance(7200)
    cluster.edit(suspend=False)
    cluster.settle()
    cluster.start_job()
    cluster.settle()
    cluster.advance(39)
    cluster.report(6)
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING
    cluster.advance(1)
    cluster.settle()
    assert cluster.run.status.phase is Phase.FAILED
    assert reason(cluster, "Failed") == "DeadlineExceeded"


def test_active_deadline_counts_all_attempts_and_not_the_pauses_between_them() -> None:
    cluster = running(stages=[TRAIN | {"activeDeadlineSeconds": 100}])
    cluster.advance(60)
    cluster.leave(1)
    cluster.settle()
    cluster.advance(600)
    cluster.settle()
    cluster.start_job()
    cluster.settle()
    cluster.advance(39)
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING
    cluster.advance(1)
    cluster.settle()
    assert cluster.run.status.phase is Phase.FAILED


def test_attempt_without_a_step_is_stalled_and_one_with_steps_is_not() -> None:
    cluster = running(stages=[TRAIN | {"stallSeconds": 100}])
    for step in range(5):
        cluster.advance(60)
        cluster.report(step)
        cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING
    for _ in range(2):
        cluster.advance(60)
        cluster.report(4)
        cluster.settle()
    assert failed_of(cluster) is FailureReason.STALLED
    stalled = find_condition(cluster.run.status.conditions, "Stalled")
    assert stalled is not None
    assert stalled.status == "True"


def evaluate(cluster: Cluster, step: int, seconds: int) -> None:
    """The trainer evaluates for so long, reporting every five seconds, and each report is seen by a pass."""
    for _ in range(0, seconds, 5):
        cluster.advance(5)
        cluster.report(step, phase=TrainerPhase.EVALUATING)
        cluster.settle()


@pytest.mark.parametrize("step", [4, 5], ids=["evaluation owed by an earlier attempt", "evaluation within a step"])
def test_training_after_an_evaluation_longer_than_stall_seconds_is_not_stalled(step: int) -> None:
    cluster = running(stages=[TRAIN | {"stallSeconds": 100}])
    cluster.report(4)
    cluster.settle()
    evaluate(cluster, 4, 150)
    for _ in range(19):
        cluster.advance(5)
        cluster.report(step)
        cluster.settle()
        assert cluster.run.status.phase is Phase.RUNNING
    cluster.advance(100)
    cluster.report(step)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.STALLED


def test_a_step_counts_at_once_however_recent_the_last_write_of_progress_is() -> None:
    cluster = running(stages=[TRAIN | {"stallSeconds": 100}])
    cluster.report(4)
    cluster.settle()
    cluster.advance(95)
    cluster.report(4)
    cluster.settle()
    cluster.advance(4)
    cluster.report(5)
    cluster.settle()
    cluster.advance(5)
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING


def test_new_checkpoint_is_a_sign_of_life_when_reports_do_not_arrive() -> None:
    cluster = running(stages=[TRAIN | {"stallSeconds": 100}])
    cluster.advance(90)
    cluster.save(5)
    cluster.advance(20)
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING


def stall(cluster: Cluster, code: int) -> None:
    """The operator gives the attempt up; the trainer hears Drain, saves what it can and leaves."""
    cluster.advance(100)
    cluster.step()
    cluster.exits[cluster.run.status.ordinal] = ExitRecord(code=code, reason="Drained" if code == 75 else "Crashed")
    cluster.settle()


@pytest.mark.parametrize("code", [75, 1])
def test_stall_burns_an_attempt_however_the_trainer_then_leaves(code: int) -> None:
    cluster = running(stages=[TRAIN | {"stallSeconds": 100}], failurePolicy={"maxAttempts": 2})
    stall(cluster, code)
    assert failed_of(cluster) is FailureReason.STALLED
    assert cluster.run.status.stages[0].failures == 1
    cluster.advance(600)
    cluster.settle()
    cluster.start_job()
    cluster.settle()
    stall(cluster, code)
    assert cluster.run.status.phase is Phase.FAILED


@pytest.mark.parametrize("code", [75, 1])
def test_active_deadline_fails_the_run_however_the_trainer_then_leaves(code: int) -> None:
    cluster = running(stages=[TRAIN | {"activeDeadlineSeconds": 100}])
    stall(cluster, code)
    assert cluster.run.status.phase is Phase.FAILED


def test_rule_by_exit_code_is_not_about_an_exit_that_the_operator_asked_for() -> None:
    rules = [{"name": "drained", "onExitCodes": [75], "action": "RetryIgnoreLimit"}]
    policy = {"maxAttempts": 1, "rules": rules}
    cluster = running(stages=[TRAIN | {"stallSeconds": 100}], failurePolicy=policy)
    stall(cluster, 75)
    assert cluster.run.status.phase is Phase.FAILED


def test_bad_configuration_is_told_though_the_attempt_was_given_up_first() -> None:
    cluster = running(stages=[TRAIN | {"stallSeconds": 100}])
    stall(cluster, 64)
    assert cluster.run.status.phase is Phase.FAILED
