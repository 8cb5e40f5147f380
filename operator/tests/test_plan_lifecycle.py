"""The state machine, transition by transition."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from plan_world import POD_SECONDS, START, UID, Cluster, condition_of, make_run, reason, running
from run_manifests import LONGER, TRAIN

from deepcoder_contracts.api.run_status import TROUBLE, Phase, RunStatus, StagePhase
from deepcoder_contracts.gate import GateRecord
from deepcoder_contracts.progress import Desired, TrainerPhase
from deepcoder_contracts.sentences import sentences
from deepcoder_operator.domain.conditions import find_condition
from deepcoder_operator.domain.heartbeat import reply
from deepcoder_operator.domain.summary import CONDITIONS
from deepcoder_operator.domain.world import Problem, RayJobView

PAGE = Path(__file__).resolve().parents[2] / "docs" / "state-machine.md"
GATE = {"all": [{"metric": "reward_mean", "op": "Ge", "value": 0.5}]}


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


def test_run_and_stage_begin_with_their_first_attempt_however_many_follow() -> None:
    cluster = running()
    cluster.advance(60)
    cluster.leave(1)
    cluster.settle()
    cluster.advance(11)
    cluster.settle()
    assert cluster.name == "demo-s0-a2"
    status = cluster.run.status
    assert (status.start_time, status.stages[0].start_time) == (START, START)


def test_all_conditions_are_there_from_the_first_pass() -> None:
    cluster = Cluster(make_run())
    cluster.step()
    assert [c.type for c in cluster.run.status.conditions] == list(CONDITIONS)


def test_every_condition_is_told_on_the_page_and_in_the_crd() -> None:
    _, after = PAGE.read_text().split("| condition |")
    rows = re.findall(r"^\| `(\w+)`( \\\*)? \|", after, re.MULTILINE)
    assert tuple(name for name, _ in rows) == CONDITIONS
    assert {name for name, mark in rows if mark} == TROUBLE.keys()
    assert tuple(re.findall(r"[A-Z]\w+", sentences(RunStatus)["conditions"])) == CONDITIONS


def test_intent_is_written_before_the_child_is_made() -> None:
    cluster = Cluster(make_run())
    while cluster.run.status.attempt is None:
        cluster.step(actions=0)
    assert cluster.made == []
    cluster.settle()
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


def test_run_that_nobody_mends_asks_its_bucket_ever_more_rarely() -> None:
    cluster = Cluster(make_run())
    cluster.storage_problem = Problem("SecretNotFound", "there is no Secret s3: create it")
    cluster.settle()
    pauses = []
    for _ in range(20):
        pauses.append(cluster.step().requeue_after)
        cluster.advance(pauses[-1])
    assert pauses[:3] == [15, 15, 15]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 120
    assert sum(pauses) > 1200
    cluster.storage_problem = None
    cluster.settle()
    assert cluster.made == ["demo-s0-a1"]


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


def test_trainer_of_an_attempt_that_has_ended_is_told_to_stop_at_once() -> None:
    """KubeRay gives up a job whose trainer may still compute, until its pods have gone."""
    cluster = running()
    cluster.change_job(job_status="FAILED", deployment_status="Failed")
    cluster.step()
    assert cluster.run.status.phase is Phase.BACKOFF
    answer = reply(cluster.run.status, cluster.now)
    assert (answer.desired, answer.deadline_seconds) == (Desired.DRAIN, 0)


def drains_slowly(cluster: Cluster) -> None:
    """The trainer has been told to drain, and says that it does."""
    cluster.edit(suspend=True)
    cluster.settle()
    cluster.advance(5)
    cluster.report(7, phase=TrainerPhase.DRAINING)
    cluster.settle()
    cluster.advance(200)
    cluster.settle()
    assert not cluster.jobs[cluster.name].deleting, "the pods stay while the trainer saves"


def test_drain_that_takes_too_long_is_told_once() -> None:
    cluster = running()
    drains_slowly(cluster)
    cluster.advance(95)
    cluster.settle()
    assert cluster.run.status.phase is Phase.SUSPENDED
    assert [e.reason for e in cluster.events if e.reason in ("Drained", "DrainTimedOut")] == ["DrainTimedOut"]


def test_drain_that_takes_too_long_ends_in_suspended_all_the_same() -> None:
    cluster = running()
    drains_slowly(cluster)
    cluster.advance(96)
    cluster.settle()
    assert cluster.run.status.phase is Phase.SUSPENDED
    assert not cluster.jobs


@pytest.mark.parametrize("heard_before", [True, False])
def test_trainer_that_cannot_be_told_to_drain_is_told_by_its_hook(heard_before: bool) -> None:
    """No report of it comes (a network policy, an authority that it does not trust): its pods end, in their time."""
    cluster = running()
    if heard_before:
        cluster.report(6)
        cluster.settle()
    cluster.kubelet = False
    cluster.edit(suspend=True)
    cluster.settle()
    cluster.advance(19)
    cluster.settle()
    assert not cluster.jobs[cluster.name].deleting
    cluster.advance(1)
    cluster.settle()
    assert not cluster.jobs
    assert cluster.run.status.phase is Phase.DRAINING
    head = cluster.pods["demo-s0-a1-head"]
    assert (head.deleting, head.grace, cluster.ended) == (True, POD_SECONDS, [])
    cluster.advance(200)
    cluster.save(7)
    cluster.write_exit(75, "Drained")
    cluster.kubelet = True
    cluster.settle()
    assert cluster.run.status.phase is Phase.SUSPENDED
    assert cluster.run.status.latest_checkpoint is not None
    assert cluster.run.status.latest_checkpoint.step == 7
    assert cluster.run.status.stages[0].failures == 0
    assert [e.reason for e in cluster.events if e.reason in ("Drained", "DrainTimedOut")] == ["Drained"]


def test_operator_that_has_just_begun_waits_for_reports_before_it_takes_a_trainer_for_deaf() -> None:
    cluster = running()
    cluster.edit(suspend=True)
    cluster.settle()
    cluster.advance(60)
    cluster.listening_since = cluster.now
    cluster.settle()
    assert not cluster.jobs[cluster.name].deleting
    cluster.advance(20)
    cluster.settle()
    assert not cluster.jobs


def test_suspend_before_the_job_is_made_makes_none() -> None:
    cluster = Cluster(make_run())
    cluster.step(actions=1)
    assert cluster.run.status.attempt is not None
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


TAKEN = RayJobView("demo-s0-a1", "theirs", "another-uid", 0)


@pytest.mark.parametrize(
    ("job", "told", "words"),
    [
        (TAKEN, "NameConflict", "delete or rename it"),
        (replace(TAKEN, run_name="other"), "NameConflict", "delete or rename it"),
        (replace(TAKEN, deleting=True), "StillEnding", "is being deleted: if it stays"),
        (replace(TAKEN, run_name="demo"), "StillEnding", "had this name before is still being removed"),
        (replace(TAKEN, run_name="demo", deleting=True), "StillEnding", "check KubeRay"),
    ],
)
def test_foreign_job_under_our_name_is_never_adopted_and_waited_for_no_longer_than_for_a_start(
    job: RayJobView, told: str, words: str
) -> None:
    cluster = Cluster(make_run(), kuberay=False)
    cluster.jobs["demo-s0-a1"] = job
    cluster.settle()
    for condition in ("Progressing", "ClusterReady"):
        assert reason(cluster, condition) == told
        assert words in condition_of(cluster, condition).message
    assert cluster.decide().hindered == told
    assert [e.reason for e in cluster.events if e.warning] == [told], "once"
    bound = cluster.run.spec.stages[0].pre_running_deadline_seconds
    cluster.advance(bound - 1)
    cluster.settle()
    assert cluster.name == "demo-s0-a1"
    cluster.advance(1)
    cluster.settle()
    assert cluster.jobs["demo-s0-a1"] == job
    assert cluster.run.status.backoff is not None
    failed = next(e for e in cluster.events if e.reason == "AttemptFailed")
    assert "PreRunningDeadlineExceeded" in failed.message
    assert words in failed.message
    cluster.advance(3600)
    cluster.settle()
    assert cluster.name == "demo-s0-a2", "under a name that nobody has"
    assert cluster.jobs["demo-s0-a2"].owner_uid == UID
    assert cluster.decide().hindered == ""


def test_name_that_a_foreign_job_had_is_used_once_it_is_free() -> None:
    cluster = Cluster(make_run())
    cluster.jobs["demo-s0-a1"] = TAKEN
    cluster.settle()
    del cluster.jobs["demo-s0-a1"]
    cluster.settle()
    assert cluster.jobs["demo-s0-a1"].owner_uid == UID


def test_foreign_job_in_place_of_a_running_attempts_own_is_as_if_that_was_deleted() -> None:
    cluster = running()
    del cluster.jobs["demo-s0-a1"]
    cluster.pods.clear()
    cluster.jobs["demo-s0-a1"] = TAKEN
    cluster.settle()
    cluster.advance(3600)
    cluster.settle()
    assert cluster.name == "demo-s0-a2"
    assert cluster.jobs["demo-s0-a1"] == TAKEN


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
