"""The state machine, transition by transition."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta

import pytest
from plan_world import UID, Cluster, make_run
from run_manifests import LONGER, TRAIN

from deepcoder_contracts.gate import GateRecord
from deepcoder_contracts.progress import Desired
from deepcoder_operator.api.failure import FailureReason
from deepcoder_operator.api.run_status import Phase, StagePhase
from deepcoder_operator.domain.conditions import find_condition
from deepcoder_operator.domain.heartbeat import reply
from deepcoder_operator.domain.summary import CONDITIONS
from deepcoder_operator.domain.world import PoolView, Problem, RayJobView

GATE = {"all": [{"metric": "reward_mean", "op": "Ge", "value": 0.5}]}


def running(**spec: object) -> Cluster:
    """A run whose first attempt runs."""
    cluster = Cluster(make_run(**spec))
    cluster.settle()
    cluster.start_job()
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING
    return cluster


def reason(cluster: Cluster, condition: str = "Progressing") -> str:
    found = find_condition(cluster.run.status.conditions, condition)
    assert found is not None
    return found.reason


def test_run_goes_through_all_stages_to_complete() -> None:
    cluster = Cluster(make_run())
    cluster.settle()
    for expected in ("demo-s0-a1", "demo-s1-a2", "demo-s2-a3"):
        assert cluster.name == expected
        cluster.finish_stage(**{"eval/held-back/pass_at_1": 0.25})
    status = cluster.run.status
    assert status.phase is Phase.COMPLETE
    assert [s.phase for s in status.stages] == [StagePhase.COMPLETE] * 3
    assert status.stages[2].results == {"eval/held-back/pass_at_1": "0.25"}
    assert cluster.made == ["demo-s0-a1", "demo-s1-a2", "demo-s2-a3"]
    assert not cluster.jobs


def test_all_conditions_are_there_from_the_first_pass() -> None:
    cluster = Cluster(make_run())
    cluster.step()
    assert [c.type for c in cluster.run.status.conditions] == list(CONDITIONS)


def test_intent_is_written_before_the_child_is_made() -> None:
    cluster = Cluster(make_run())
    while cluster.run.status.attempt is None:
        cluster.step()
    assert cluster.made == []
    cluster.step()
    assert cluster.made == ["demo-s0-a1"]


def test_second_stage_starts_from_the_final_checkpoint_of_the_first() -> None:
    cluster = running()
    cluster.save(20, final=True)
    cluster.leave(0, "Completed")
    cluster.settle()
    attempt = cluster.run.status.attempt
    assert attempt is not None
    assert attempt.parent is not None
    assert attempt.parent.uri.endswith("short/step-000020.a001")


def test_old_cluster_is_gone_before_the_next_is_asked_for() -> None:
    cluster = running()
    cluster.save(20, final=True)
    cluster.leave(0, "Completed")
    cluster.kuberay = cluster.kubelet = False
    cluster.settle()
    assert cluster.jobs["demo-s0-a1"].deleting
    assert cluster.run.status.phase is Phase.PROMOTING
    cluster.kuberay = True
    cluster.settle()
    assert not cluster.jobs
    assert cluster.ended == ["demo-s0-a1-head"], "nothing is left to drain"
    assert cluster.run.status.phase is Phase.PROMOTING
    cluster.kubelet = True
    cluster.settle()
    assert cluster.name == "demo-s1-a2"


def test_exit_that_comes_after_the_job_was_deleted_still_counts() -> None:
    cluster = running()
    cluster.change_job(job_status="FAILED", deployment_status="Failed", message="head is unreachable")
    cluster.kubelet = False
    cluster.settle()
    cluster.save(7)
    cluster.write_exit(75, "Drained")
    cluster.kubelet = True
    cluster.settle()
    assert cluster.run.status.backoff is not None
    assert cluster.run.status.backoff.reason is FailureReason.PREEMPTED
    assert cluster.run.status.latest_checkpoint is not None
    assert cluster.run.status.latest_checkpoint.step == 7


@pytest.mark.parametrize("suspend", [False, True])
def test_run_is_complete_when_the_stages_it_had_not_begun_are_removed(suspend: bool) -> None:
    cluster = running(stages=[TRAIN, LONGER])
    cluster.save(20, final=True)
    cluster.leave(0, "Completed")
    while cluster.run.status.stages[0].phase is not StagePhase.COMPLETE:
        cluster.step()
        cluster.others_act()
    cluster.edit(stages=cluster.run.spec.stages[:1], suspend=suspend)
    cluster.settle()
    assert cluster.run.status.phase is Phase.COMPLETE
    assert [s.name for s in cluster.run.status.stages] == ["short"]


def test_stage_that_was_not_begun_may_be_exchanged() -> None:
    cluster = running(stages=[TRAIN, LONGER])
    cluster.edit(stages=make_run(stages=[TRAIN, LONGER | {"name": "other"}]).spec.stages)
    cluster.save(20, final=True)
    cluster.leave(0, "Completed")
    cluster.settle()
    assert [s.name for s in cluster.run.status.stages] == ["short", "other"]
    assert cluster.run.status.current_stage is not None
    assert cluster.run.status.current_stage.name == "other"


@pytest.mark.parametrize("away", ["kuberay", "kubelet"])
def test_deletion_waits_for_no_one_for_ever(away: str) -> None:
    cluster = running()
    setattr(cluster, away, False)
    cluster.delete()
    cluster.settle()
    cluster.advance(301)
    cluster.settle()
    assert cluster.run.metadata.finalizers, "what is left of the attempt has its time"
    cluster.advance(361)
    decided = cluster.step()
    assert "LeftBehind" in [e.reason for e in decided.events]
    assert cluster.run.metadata.finalizers == []


def test_run_goes_on_when_an_old_job_is_never_let_go() -> None:
    cluster = running()
    cluster.kuberay = False
    cluster.leave(1)
    cluster.settle()
    assert cluster.run.status.attempt is not None
    cluster.advance(361)
    cluster.settle()
    assert cluster.ended == ["demo-s0-a1-head"], "its pods hold no GPU"
    cluster.advance(10)
    cluster.settle()
    assert cluster.name == "demo-s0-a2"


@pytest.mark.parametrize("word", ["CredentialsRefused", "SecretNotFound", "BucketNotFound", "StorageUnreachable"])
def test_no_gpu_is_asked_for_while_storage_has_a_problem(word: str) -> None:
    cluster = Cluster(make_run(), storage_problem=Problem(word, "mend it"))
    cluster.settle()
    assert cluster.run.status.phase is Phase.PENDING
    assert reason(cluster, "Accepted") == word
    assert cluster.made == []
    cluster.storage_problem = None
    cluster.settle()
    assert cluster.made == ["demo-s0-a1"]


def test_missing_pool_is_waited_for() -> None:
    cluster = Cluster(make_run(sandbox={"poolRef": {"name": "shared"}}))
    cluster.settle()
    assert reason(cluster, "Accepted") == "PoolNotFound"
    cluster.pool = PoolView("shared", True)
    cluster.settle()
    assert cluster.made == ["demo-s0-a1"]


def test_own_pool_goes_with_the_run_and_while_it_is_suspended() -> None:
    cluster = running(stages=[TRAIN])
    first = cluster.pool
    assert first is not None
    cluster.edit(suspend=True)
    cluster.settle()
    cluster.write_exit(75, "Drained")
    cluster.settle()
    assert cluster.run.status.phase is Phase.SUSPENDED
    assert cluster.pool is None
    assert reason(cluster, "SandboxReady") == "PoolNotMade"
    cluster.edit(suspend=False)
    cluster.settle()
    assert cluster.pool is not None
    assert cluster.pool.uid != first.uid
    cluster.finish_stage()
    assert cluster.run.status.phase is Phase.COMPLETE
    assert cluster.pool is None


def test_own_pool_goes_when_the_run_fails_and_while_it_is_held() -> None:
    cluster = running(stages=[TRAIN | {"hold": True}, LONGER], failurePolicy={"maxAttempts": 1})
    cluster.save(20, final=True)
    cluster.leave(0, "Completed")
    cluster.settle()
    assert cluster.run.status.phase is Phase.HELD
    assert cluster.pool is None
    cluster.edit(approved_stages=["short"])
    cluster.settle()
    assert cluster.pool is not None
    cluster.leave(1)
    cluster.settle()
    assert cluster.run.status.phase is Phase.FAILED
    assert cluster.pool is None


@pytest.mark.parametrize("owner", [None, "another-run"])
def test_pool_that_is_not_the_runs_own_is_never_deleted(owner: str | None) -> None:
    run = make_run(sandbox={"poolRef": {"name": "shared"}}, stages=[TRAIN])
    cluster = Cluster(run, pool=PoolView("shared", True, owner_uid=owner))
    cluster.settle()
    cluster.finish_stage()
    assert cluster.run.status.phase is Phase.COMPLETE
    assert cluster.pool is not None
    assert not cluster.pool.deleting


def test_next_attempt_waits_for_the_pool_from_before_to_be_gone() -> None:
    cluster = running(stages=[TRAIN])
    cluster.leave(1)
    cluster.settle()
    assert cluster.pool is not None
    cluster.pool = replace(cluster.pool, deleting=True)
    cluster.advance(10)
    for _ in range(4):
        cluster.step()
    assert cluster.made == ["demo-s0-a1"]
    assert reason(cluster) == "PoolEnding"
    cluster.settle()
    assert cluster.made == ["demo-s0-a1", "demo-s0-a2"]
    assert not cluster.pool.deleting


def test_sandbox_seconds_leave_out_the_time_without_a_pool() -> None:
    cluster = running(stages=[TRAIN])
    assert cluster.pool is not None
    cluster.pool = replace(cluster.pool, replicas=2)
    cluster.advance(60)
    cluster.settle()
    assert cluster.run.status.usage.sandbox_seconds == "120"
    cluster.edit(suspend=True)
    cluster.settle()
    cluster.write_exit(75, "Drained")
    cluster.settle()
    cluster.advance(3600)
    cluster.settle()
    cluster.edit(suspend=False)
    cluster.settle()
    cluster.pool = replace(cluster.pool, replicas=2)
    cluster.advance(60)
    cluster.settle()
    assert cluster.run.status.usage.sandbox_seconds == "240"


def test_another_manager_leaves_the_run_alone() -> None:
    cluster = Cluster(make_run(managedBy="kueue.x-k8s.io/multikueue"))
    decided = cluster.step()
    assert decided.actions == ()
    assert cluster.run.status.conditions == []


def test_suspend_drains_through_the_reply_and_resume_goes_on() -> None:
    cluster = running()
    cluster.edit(suspend=True)
    cluster.settle()
    assert cluster.run.status.phase is Phase.DRAINING
    answer = reply(cluster.run.status, cluster.now)
    assert (answer.desired, answer.deadline_seconds) == (Desired.DRAIN, 300)
    assert cluster.jobs, "the pods stay while the trainer saves"
    cluster.save(7)
    cluster.leave(75, "Drained")
    cluster.settle()
    assert cluster.run.status.phase is Phase.SUSPENDED
    assert not cluster.jobs
    assert cluster.run.status.stages[0].failures == 0
    assert cluster.run.status.latest_checkpoint is not None
    cluster.edit(suspend=False)
    cluster.settle()
    assert cluster.name == "demo-s0-a2"


def test_drain_that_takes_too_long_ends_in_suspended_all_the_same() -> None:
    cluster = running()
    cluster.edit(suspend=True)
    cluster.settle()
    cluster.advance(301)
    cluster.settle()
    assert cluster.run.status.phase is Phase.SUSPENDED
    assert not cluster.jobs


def test_suspend_before_the_job_is_made_makes_none() -> None:
    cluster = Cluster(make_run())
    while cluster.run.status.attempt is None:
        cluster.step()
    cluster.edit(suspend=True)
    cluster.settle()
    assert cluster.made == []
    assert cluster.run.status.phase is Phase.SUSPENDED


def test_stage_that_finishes_while_draining_is_passed_then_suspended() -> None:
    cluster = running()
    cluster.edit(suspend=True)
    cluster.settle()
    cluster.save(20, final=True)
    cluster.leave(0, "Completed")
    cluster.settle()
    assert cluster.run.status.stages[0].phase is StagePhase.COMPLETE
    assert cluster.run.status.phase is Phase.SUSPENDED


@pytest.mark.parametrize(
    ("otherwise", "phase"), [("Promote", Phase.STARTING), ("Hold", Phase.HELD), ("Fail", Phase.FAILED)]
)
def test_unmet_gate_is_followed_by_otherwise(otherwise: str, phase: Phase) -> None:
    stages = [TRAIN | {"promoteWhen": GATE | {"otherwise": otherwise}}, LONGER]
    cluster = running(stages=stages)
    cluster.save(20, final=True, gate=GateRecord(met=False, values={"reward_mean": 0.3}, window={"reward_mean": 1}))
    cluster.leave(0, "Completed")
    cluster.settle()
    assert cluster.run.status.phase is phase


def test_gate_is_compared_again_and_not_believed() -> None:
    cluster = running(stages=[TRAIN | {"promoteWhen": GATE | {"otherwise": "Fail"}}, LONGER])
    cluster.save(20, final=True, gate=GateRecord(met=True, values={"reward_mean": 0.3}, window={"reward_mean": 1}))
    cluster.leave(0, "Completed")
    cluster.settle()
    assert cluster.run.status.phase is Phase.FAILED


def test_held_stage_is_released_by_its_name() -> None:
    cluster = running(stages=[TRAIN | {"hold": True}, LONGER])
    cluster.save(20, final=True)
    cluster.leave(0, "Completed")
    cluster.settle()
    assert cluster.run.status.phase is Phase.HELD
    held = find_condition(cluster.run.status.conditions, "Progressing")
    assert held is not None
    assert "kubectl -n ml patch dcr demo --type=json" in held.message
    assert not cluster.jobs
    cluster.edit(approved_stages=["short"])
    cluster.settle()
    assert cluster.name == "demo-s1-a2"


def test_result_waits_for_storage_and_holds_no_gpu() -> None:
    cluster = running()
    cluster.save(20, final=True)
    cluster.leave(0, "Completed")
    cluster.storage_problem = Problem("StorageUnreachable", "no route")
    cluster.settle()
    assert cluster.run.status.phase is Phase.PROMOTING
    assert reason(cluster) == "StorageUnreachable"
    assert not cluster.jobs
    cluster.storage_problem = None
    cluster.settle()
    assert cluster.name == "demo-s1-a2"


def test_deletion_drains_then_lets_go() -> None:
    cluster = running(cleanup={"artifacts": "Delete"})
    cluster.delete()
    cluster.settle()
    assert cluster.run.metadata.finalizers, "held while it drains"
    cluster.save(5)
    cluster.leave(75, "Drained")
    cluster.settle()
    assert cluster.run.metadata.finalizers == []
    assert cluster.artifacts_deleted
    assert not cluster.jobs


def test_deletion_is_bounded() -> None:
    cluster = running()
    cluster.delete()
    cluster.settle()
    cluster.advance(301)
    cluster.settle()
    assert cluster.run.metadata.finalizers == []


def test_foreign_job_under_our_name_is_never_adopted() -> None:
    cluster = Cluster(make_run())
    cluster.jobs["demo-s0-a1"] = RayJobView("demo-s0-a1", "theirs", "another-uid", 0)
    cluster.settle()
    assert reason(cluster) == "NameConflict"
    assert "demo-s0-a1" in cluster.jobs
    del cluster.jobs["demo-s0-a1"]
    cluster.settle()
    assert cluster.jobs["demo-s0-a1"].owner_uid == UID


def test_finished_run_makes_nothing_when_its_children_vanish_and_expires() -> None:
    cluster = running(stages=[TRAIN], cleanup={"ttlSecondsAfterFinished": 60})
    cluster.save(20, final=True)
    cluster.leave(0, "Completed")
    cluster.settle()
    cluster.pods, cluster.pool = {}, None
    assert not cluster.step().actions
    cluster.advance(61)
    cluster.step()
    assert cluster.deleted_run


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


def test_progress_is_written_at_most_each_15_seconds() -> None:
    cluster = running()
    cluster.report(1, reward_mean=0.5)
    cluster.settle()
    assert cluster.run.status.progress is not None
    assert cluster.run.status.progress.display == "1/20"
    for step in range(2, 5):
        cluster.advance(4)
        cluster.report(step)
        cluster.settle()
        assert cluster.run.status.progress.step == 1
    cluster.advance(4)
    cluster.settle()
    assert cluster.run.status.progress.step == 4


def test_metrics_that_no_number_shows_are_left_out_and_small_ones_keep_their_digits() -> None:
    cluster = running()
    cluster.report(1, reward_mean=0.64)
    cluster.settle()
    cluster.advance(20)
    cluster.report(
        2, reward_mean=math.nan, loss=math.inf, lr=1e-6, kl=0.000123456, tokens=1.5e9, huge=1e300, tiny=1e-300
    )
    cluster.settle()
    progress = cluster.run.status.progress
    assert progress is not None
    assert progress.metrics == {"lr": "0.000001", "kl": "0.0001235", "tokens": "1500000000", "tiny": "0"}
    assert progress.reward is None
    assert cluster.run.status.stages[0].reward == "0.64", "the last that was one"


def test_unmet_gate_shows_the_value_as_it_was() -> None:
    stages = [TRAIN | {"promoteWhen": GATE | {"otherwise": "Hold"}}, LONGER]
    cluster = running(stages=stages)
    values = {"reward_mean": math.nan}
    cluster.save(20, final=True, gate=GateRecord(met=False, values=values, window={"reward_mean": 1}))
    cluster.leave(0, "Completed")
    cluster.settle()
    assert cluster.run.status.phase is Phase.HELD
    assert "reward_mean" not in cluster.run.status.stages[0].results
    assert "reward_mean Ge 0.5: nan" in (cluster.run.status.stages[0].message or "")


def test_gpu_seconds_count_from_scheduled_to_gone() -> None:
    cluster = running()
    head = cluster.pods["demo-s0-a1-head"]
    worker = replace(head, name="w", uid="w", role="learner", gpus=8, scheduled=cluster.now)
    cluster.pods["w"] = worker
    cluster.settle()
    assert cluster.run.status.gpus == 8
    cluster.advance(100)
    cluster.save(20, final=True)
    cluster.pods["w"] = replace(worker, finished=worker.scheduled + timedelta(seconds=90))  # type: ignore[operator]
    cluster.leave(0, "Completed")
    cluster.settle()
    assert cluster.run.status.usage.gpu_seconds == "720"
    assert cluster.run.status.usage.wasted_gpu_seconds == "0"


@pytest.mark.parametrize("node_lost", [False, True])
def test_wasted_gpu_seconds_end_with_the_attempt_and_not_with_an_outage_of_storage(node_lost: bool) -> None:
    cluster = running()
    head = cluster.pods["demo-s0-a1-head"]
    cluster.pods["w"] = replace(head, name="w", uid="w", role="learner", gpus=8, scheduled=cluster.now)
    cluster.settle()
    cluster.advance(100)
    if node_lost:
        cluster.pods = {}
    cluster.leave(1)
    cluster.storage_problem = Problem("StorageUnreachable", "no route")
    cluster.settle()
    cluster.advance(3600)
    cluster.storage_problem = None
    cluster.settle()
    assert cluster.run.status.usage.wasted_gpu_seconds == "800"
