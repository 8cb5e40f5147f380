"""Clocks that are set ahead or back, by a restart or on another node: for that nothing is given up or waited for."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import get_args

from plan_world import Cluster, failed_of, running
from run_manifests import TRAIN

from deepcoder_contracts.api.attempt_status import AttemptStatus
from deepcoder_contracts.api.failure import FailureReason
from deepcoder_contracts.api.run_status import Phase
from deepcoder_operator.domain.times import _ATTEMPT

HOUR = 3600


def assert_stalls_in(cluster: Cluster, seconds: int) -> None:
    """And not a second before."""
    cluster.advance(seconds - 1)
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING
    cluster.advance(1)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.STALLED


def test_every_time_of_an_attempt_is_brought_back_or_has_a_bound_of_its_own() -> None:
    times = {n for n, f in AttemptStatus.model_fields.items() if datetime in (f.annotation, *get_args(f.annotation))}
    assert times == {*_ATTEMPT, "drain_deadline"}, "tell of it in domain/times.py"


def test_progress_is_written_on_after_the_clock_was_set_back() -> None:
    cluster = running()
    cluster.report(1)
    cluster.settle()
    cluster.advance(-HOUR)
    for step in (2, 3):
        cluster.advance(20)
        cluster.report(step)
        cluster.settle()
    assert cluster.run.status.progress is not None
    assert cluster.run.status.progress.step == 3


def test_drain_takes_no_longer_than_its_bound_after_the_clock_was_set_back() -> None:
    cluster = running()
    cluster.edit(suspend=True)
    cluster.settle()
    cluster.advance(-HOUR)
    cluster.settle()
    cluster.advance(300)
    cluster.settle()
    assert cluster.run.status.phase is Phase.SUSPENDED


def test_pods_of_an_ended_attempt_are_waited_for_no_longer_after_the_clock_was_set_back() -> None:
    cluster = running()
    cluster.kubelet = False
    cluster.leave(1)
    cluster.settle()
    cluster.advance(-HOUR)
    cluster.settle()
    cluster.advance(360)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.APPLICATION


def test_pause_is_no_longer_than_its_bound_after_the_clock_was_set_back() -> None:
    cluster = running(failurePolicy={"backoff": {"maxSeconds": 60}})
    cluster.leave(1)
    cluster.settle()
    cluster.advance(-HOUR)
    cluster.settle()
    cluster.advance(60)
    cluster.settle()
    assert cluster.made == ["demo-s0-a1", "demo-s0-a2"]


def test_attempt_that_has_stalled_is_given_up_in_time_after_the_clock_was_set_back() -> None:
    cluster = running(stages=[TRAIN | {"stallSeconds": 100}])
    cluster.advance(-HOUR)
    cluster.settle()
    cluster.advance(100)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.STALLED


def test_checkpoint_that_storage_dates_far_ahead_is_no_sign_of_life() -> None:
    cluster = running(stages=[TRAIN | {"stallSeconds": 100}])
    cluster.now += timedelta(hours=5)
    cluster.save(5)
    cluster.now -= timedelta(hours=5)
    for _ in range(3):
        cluster.advance(100)
        cluster.settle()
    assert failed_of(cluster) is FailureReason.STALLED


def test_checkpoint_that_storage_dates_a_little_ahead_is_one() -> None:
    cluster = running(stages=[TRAIN | {"stallSeconds": 100}])
    cluster.advance(130)
    cluster.save(5)
    cluster.advance(-30)
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING


def test_silence_of_all_runs_is_taken_for_our_own_deafness_three_times_as_long() -> None:
    cluster = running(stages=[TRAIN | {"stallSeconds": 100}])
    cluster.report(1)
    cluster.heard = cluster.now
    cluster.settle()
    assert_stalls_in(cluster, 300)


def test_attempt_that_cannot_report_any_more_while_others_do_lives_by_its_checkpoints() -> None:
    """Its authority is lost, so it trusts no reply; those that began later are heard."""
    cluster = running(stages=[TRAIN | {"stallSeconds": 100}])
    for step in range(1, 10):
        cluster.advance(90)
        cluster.heard = cluster.now
        cluster.save(step)
        cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING
    cluster.advance(101)
    cluster.heard = cluster.now
    cluster.settle()
    assert failed_of(cluster) is FailureReason.STALLED


def test_operator_that_was_deaf_from_its_start_does_not_end_what_it_cannot_hear() -> None:
    cluster = running(stages=[TRAIN | {"stallSeconds": 100}])
    cluster.report(1)
    cluster.settle()
    cluster.advance(7200)
    cluster.watching_since = cluster.heard = cluster.now
    cluster.beat = None
    assert_stalls_in(cluster, 300)


def test_silence_of_one_run_among_others_that_are_heard_is_a_stall() -> None:
    cluster = running(stages=[TRAIN | {"stallSeconds": 100}])
    cluster.report(1)
    cluster.settle()
    cluster.advance(100)
    cluster.heard = cluster.now - timedelta(seconds=3)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.STALLED
