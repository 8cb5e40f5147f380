"""Judges that cannot be there: no GPU is held for those that refuse to start, none asked for before one is ready."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from plan_judges import PULL, WORDS, refusing, without_judges
from plan_world import START, Cluster, condition_of, failed_of, make_run, reason, running
from run_manifests import TRAIN

from deepcoder_contracts.api.attempt_status import AttemptState
from deepcoder_contracts.api.failure import FailureReason
from deepcoder_contracts.api.run_status import Phase
from deepcoder_contracts.progress import ExpectedSubmissions, TrainerPhase
from deepcoder_operator.domain.pool_status import IDLE, JUDGES_REFUSE
from deepcoder_operator.domain.query import storage_query
from deepcoder_operator.domain.world import PoolView, pool_view


def starting(**spec: object) -> Cluster:
    """A run whose first attempt has a head, and whose program does not run yet."""
    cluster = Cluster(make_run(**spec))
    cluster.settle()
    cluster.start_job()
    cluster.change_job(job_status="", deployment_status="Initializing")
    cluster.settle()
    assert cluster.run.status.phase is Phase.STARTING
    return cluster


@pytest.mark.parametrize("begin", [starting, running])
def test_attempt_whose_judges_refuse_to_start_gives_its_gpus_back_at_once_and_says_why(
    begin: Callable[..., Cluster],
) -> None:
    cluster = begin(stages=[TRAIN])
    cluster.pool = refusing(cluster.pool)
    cluster.settle()
    assert cluster.run.status.phase is Phase.BACKOFF
    assert failed_of(cluster) is FailureReason.SANDBOX_UNAVAILABLE
    assert not cluster.jobs
    told = condition_of(cluster, "Progressing").message
    assert WORDS in told
    assert "next attempt in 10 s" in told
    assert [e.reason for e in cluster.events if e.warning] == ["AttemptFailed", "SandboxUnavailable"]


def test_trainer_that_saves_when_its_judges_are_given_up_was_not_preempted() -> None:
    """It leaves with 75, as whoever is told to; a preemption would be retried for ever."""
    cluster = running(stages=[TRAIN])
    cluster.pool = refusing(cluster.pool)
    cluster.step()
    cluster.write_exit(75, "Drained")
    cluster.settle()
    assert failed_of(cluster) is FailureReason.SANDBOX_UNAVAILABLE
    stage = cluster.run.status.stages[0]
    assert (stage.failures, stage.preemptions) == (0, 0)


def test_no_gpu_is_asked_for_while_judges_refuse_and_the_next_attempt_begins_when_they_are_mended() -> None:
    cluster = running(stages=[TRAIN])
    cluster.pool = refusing(cluster.pool)
    cluster.settle()
    for _ in range(10):
        cluster.advance(600)
        cluster.settle()
    assert cluster.made == ["demo-s0-a1"]
    assert cluster.run.status.phase is Phase.PENDING
    assert reason(cluster, "Accepted") == JUDGES_REFUSE
    told = condition_of(cluster, "Accepted").message
    assert WORDS in told
    assert "kubectl -n ml edit sandboxpool demo-sandbox" in told
    assert [e.reason for e in cluster.events].count(JUDGES_REFUSE) == 1, "said once, however long it lasts"
    assert cluster.pool is not None
    cluster.pool = replace(cluster.pool, ready=True, stuck_reason="", message="1 of 1 judges are ready")
    cluster.settle()
    assert cluster.made == ["demo-s0-a1", "demo-s0-a2"]
    assert reason(cluster, "Accepted") == "Valid"


def test_run_whose_shared_judges_refuse_asks_for_no_gpu_at_all() -> None:
    cluster = Cluster(make_run(sandbox={"poolRef": {"name": "shared"}}))
    cluster.pool = refusing(PoolView("shared", True))
    cluster.settle()
    assert cluster.made == []
    assert reason(cluster, "Accepted") == JUDGES_REFUSE
    cluster.pool = PoolView("shared", True)
    cluster.settle()
    assert cluster.made == ["demo-s0-a1"]


def test_judges_that_are_missing_are_waited_for_and_their_pool_is_named_when_the_attempt_stalls() -> None:
    cluster = running(stages=[TRAIN | {"stallSeconds": 100}])
    without_judges(cluster)
    cluster.advance(99)
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING
    cluster.advance(2)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.SANDBOX_UNAVAILABLE
    told = condition_of(cluster, "Progressing").message
    assert "no step for 100 s" in told
    assert PULL in told


def test_attempt_that_hung_before_its_judges_went_has_stalled() -> None:
    cluster = running(stages=[TRAIN | {"stallSeconds": 100}])
    cluster.advance(90)
    without_judges(cluster)
    cluster.advance(11)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.STALLED
    assert PULL in condition_of(cluster, "Progressing").message
    assert "no step for 100 s" in condition_of(cluster, "Stalled").message


def test_trainer_that_leaves_for_want_of_judges_is_followed_by_what_their_pool_says() -> None:
    cluster = running(stages=[TRAIN])
    without_judges(cluster)
    cluster.leave(75, "SandboxUnavailable")
    cluster.settle()
    told = condition_of(cluster, "Progressing").message
    assert told.count(PULL) == 1


def test_after_an_outage_gpus_are_asked_for_when_a_judge_is_ready() -> None:
    cluster = running(stages=[TRAIN])
    without_judges(cluster)
    cluster.leave(75, "SandboxUnavailable")
    cluster.settle()
    cluster.advance(600)
    cluster.settle()
    assert cluster.made == ["demo-s0-a1"]
    assert reason(cluster, "Accepted") == "JudgesNotReady"
    assert PULL in condition_of(cluster, "Accepted").message
    assert cluster.pool is not None
    cluster.pool = replace(cluster.pool, ready=True, unready_since=None)
    cluster.settle()
    assert cluster.made == ["demo-s0-a1", "demo-s0-a2"]


def test_judges_that_do_not_come_are_waited_for_no_longer_than_an_attempt_may_take_to_start() -> None:
    """Their place may be beside the attempt's own pods."""
    cluster = running(stages=[TRAIN | {"preRunningDeadlineSeconds": 1200}])
    without_judges(cluster)
    cluster.leave(75, "SandboxUnavailable")
    cluster.settle()
    cluster.advance(10 + 1199)
    cluster.settle()
    assert cluster.made == ["demo-s0-a1"]
    cluster.advance(1)
    cluster.settle()
    assert cluster.made == ["demo-s0-a1", "demo-s0-a2"]


def test_pool_that_was_deleted_to_be_made_anew_is_made_before_gpus_are_asked_for() -> None:
    cluster = running(stages=[TRAIN])
    cluster.pool = refusing(cluster.pool)
    cluster.settle()
    cluster.pool = None
    cluster.advance(11)
    cluster.step()
    assert cluster.pool is not None
    assert cluster.made == ["demo-s0-a1"], "it has to be ready first"
    cluster.settle()
    assert cluster.made == ["demo-s0-a1", "demo-s0-a2"]


def assert_pool_is_kept_while_the_next_attempt_waits(cluster: Cluster) -> None:
    cluster.advance(11)
    cluster.settle()
    assert cluster.made == ["demo-s0-a1", "demo-s0-a2"]
    cluster.advance(600)
    cluster.settle()
    assert cluster.pool is not None
    assert not cluster.pool.deleting


def test_pool_that_was_edited_is_kept_for_an_attempt_that_waits_in_its_queue() -> None:
    """Made anew it would be the run's template again, whose judges refuse to start."""
    cluster = running(stages=[TRAIN])
    cluster.pool = refusing(cluster.pool)
    cluster.settle()
    cluster.pool = replace(cluster.pool, ready=True, stuck_reason="", edited=True)
    assert_pool_is_kept_while_the_next_attempt_waits(cluster)


def test_pool_that_was_edited_is_kept_when_an_attempt_that_it_served_is_followed_by_one_that_waits() -> None:
    """What mended it is the pool's alone: the run's template cannot be changed."""
    cluster = running(stages=[TRAIN])
    assert cluster.pool is not None
    cluster.pool = replace(cluster.pool, edited=True)
    cluster.leave(137, "OutOfMemory")
    cluster.settle()
    assert_pool_is_kept_while_the_next_attempt_waits(cluster)


def test_judges_that_serve_are_waited_for_by_nobody_after_an_outage() -> None:
    cluster = running(stages=[TRAIN])
    cluster.leave(75, "SandboxUnavailable")
    cluster.settle()
    cluster.advance(11)
    cluster.settle()
    assert cluster.made == ["demo-s0-a1", "demo-s0-a2"]


def test_run_with_a_hosted_judge_waits_for_no_pool_after_an_outage() -> None:
    cluster = running(stages=[TRAIN], sandbox={"together": {"credentialsSecretRef": {"name": "together"}}})
    cluster.leave(75, "SandboxUnavailable")
    cluster.settle()
    cluster.advance(11)
    cluster.settle()
    assert cluster.made == ["demo-s0-a1", "demo-s0-a2"]


def test_attempt_that_trains_without_judges_goes_on_without_them() -> None:
    cluster = running(stages=[TRAIN])

    def announce(count: int, phase: TrainerPhase = TrainerPhase.TRAINING) -> None:
        cluster.report(3, phase=phase)
        assert cluster.beat is not None
        expected = ExpectedSubmissions(count=count, within_seconds=60)
        told = cluster.beat.report.model_copy(update={"expected_submissions": expected})
        cluster.beat = replace(cluster.beat, report=told)

    announce(0)
    cluster.pool = refusing(cluster.pool)
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING
    announce(0, TrainerPhase.CHECKPOINTING)
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING, "it saves as part of its training"
    cluster.beat = None
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING, "another process has begun to lead, and is told in seconds"
    announce(1024)
    cluster.step()
    assert cluster.run.status.attempt is not None
    assert cluster.run.status.attempt.state is AttemptState.LEAVING


def test_pool_whose_token_is_somebody_elses_holds_no_gpu_for_the_hour_that_a_head_may_wait_for_it() -> None:
    cluster = starting(stages=[TRAIN])
    words = "no judge is ready; Secret demo-sandbox-token exists and does not belong to this pool: delete or rename it"
    assert cluster.pool is not None
    cluster.pool = replace(cluster.pool, ready=False, stuck_reason="NameConflict", message=words)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.SANDBOX_UNAVAILABLE
    cluster.advance(11)
    cluster.settle()
    assert reason(cluster, "Accepted") == "NameConflict"
    assert words in condition_of(cluster, "Accepted").message


def test_slow_bucket_does_not_hold_up_the_end_of_an_attempt_without_judges() -> None:
    cluster = running(stages=[TRAIN | {"stallSeconds": 100}])
    cluster.advance(101)
    assert storage_query(cluster.run, cluster.world(), cluster.now) is not None
    cluster.pool = refusing(cluster.pool)
    assert storage_query(cluster.run, cluster.world(), cluster.now) is None
    cluster.edit(suspend=True)
    cluster.step()
    assert cluster.run.status.phase is Phase.DRAINING
    assert storage_query(cluster.run, cluster.world(), cluster.now) is not None, "has its trainer left?"


@pytest.mark.parametrize("how", ["evicted", "failed", "lost"])
def test_slow_bucket_does_not_hold_up_the_end_of_an_attempt_that_has_ended(how: str) -> None:
    cluster = running(stages=[TRAIN | {"stallSeconds": 100}])
    cluster.advance(101)
    assert storage_query(cluster.run, cluster.world(), cluster.now) is not None
    if how == "evicted":
        cluster.change_job(suspended=True)
    elif how == "failed":
        cluster.change_job(job_status="FAILED")
    else:
        cluster.pods = {}
    assert storage_query(cluster.run, cluster.world(), cluster.now) is None


def test_pool_that_was_mended_and_not_looked_at_since_is_not_said_to_refuse() -> None:
    ready = {
        "type": "Ready",
        "status": "False",
        "reason": JUDGES_REFUSE,
        "message": WORDS,
        "observedGeneration": 2,
        "lastTransitionTime": START.isoformat(),
    }
    obj: dict[str, Any] = {
        "metadata": {"name": "judges", "uid": "u", "generation": 2},
        "status": {"conditions": [ready]},
    }
    assert pool_view(obj).stuck_reason == JUDGES_REFUSE
    assert pool_view(obj).edited
    assert pool_view(obj).unready_since == START
    obj["metadata"]["generation"] = 3
    assert not pool_view(obj).stuck_reason
    well = pool_view(obj | {"status": {"conditions": [ready | {"status": "True"}]}})
    assert (well.unready_since, well.idle) == (None, False)
    assert pool_view(obj | {"status": {"conditions": [ready | {"status": "True", "reason": IDLE}]}}).idle
