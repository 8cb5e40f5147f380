"""Ends of attempts and runs: what is waited for, and how long."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_world import Cluster, make_run, reason, running
from run_manifests import TRAIN

from deepcoder_contracts.api.failure import FailureReason
from deepcoder_contracts.api.run_spec import Artifacts, Cleanup
from deepcoder_contracts.api.run_status import Phase
from deepcoder_operator.domain.draft import EndPods, RemoveFinalizer
from deepcoder_operator.domain.plan import plan
from deepcoder_operator.domain.policy import Policy
from deepcoder_operator.domain.world import Problem


def failed_while_kuberay_is_away() -> Cluster:
    """Its RayJob and pods are deleted by nobody."""
    cluster = running()
    cluster.kuberay = False
    cluster.leave(1)
    cluster.settle()
    return cluster


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


def test_pods_that_are_left_behind_end_although_the_operator_was_killed_before_it_had_ended_them() -> None:
    """They would hold their GPUs, unseen, beside the next attempt's for as long as KubeRay is away."""
    cluster = failed_while_kuberay_is_away()
    cluster.advance(1000)
    cluster.step(actions=0)
    assert cluster.run.status.attempt is None
    assert not cluster.pods["demo-s0-a1-head"].deleting
    cluster.advance(20)
    while len(cluster.made) == 1:
        cluster.step()
    assert cluster.ended == ["demo-s0-a1-head"]
    assert cluster.pods["demo-s0-a1-head"].deleting


def test_run_goes_on_beside_pods_that_may_not_be_ended() -> None:
    cluster = failed_while_kuberay_is_away()
    cluster.advance(1000)
    cluster.step(actions=0)
    cluster.advance(20)
    forbidden = Problem("Forbidden", "pods may not be deleted", action="EndPods")
    decided = plan(cluster.run, replace(cluster.world(), obstacle=forbidden), cluster.now, Policy())
    assert decided.status.attempt is not None
    assert decided.status.attempt.ordinal == 2
    assert EndPods not in {type(a) for a in decided.actions}


def test_trainer_that_has_written_its_exit_has_the_time_it_takes_to_close_its_metrics_and_samples() -> None:
    closing = 25  # seconds that a trainer gives itself after drainSeconds
    cluster = running()
    cluster.kubelet = False
    cluster.edit(suspend=True)
    cluster.settle()
    cluster.save(7)
    cluster.write_exit(75, "Drained")
    cluster.settle()
    assert cluster.ended == ["demo-s0-a1-head"]
    grace = cluster.pods["demo-s0-a1-head"].grace
    assert grace is not None
    assert closing < grace < 60, "and not the whole grace of its pod, should it hang"


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


def test_run_goes_on_when_an_old_job_is_never_let_go() -> None:
    cluster = failed_while_kuberay_is_away()
    assert cluster.run.status.attempt is not None
    cluster.advance(361)
    cluster.settle()
    assert cluster.ended == ["demo-s0-a1-head"], "its pods hold no GPU"
    cluster.advance(10)
    cluster.settle()
    assert cluster.name == "demo-s0-a2"


def test_what_is_left_behind_is_told_once_however_long_storage_is_away_after_that() -> None:
    cluster = failed_while_kuberay_is_away()
    cluster.storage_problem = Problem("StorageUnreachable", "no route")
    cluster.advance(361)
    decided = []
    for _ in range(20):
        decided.append(cluster.step())
        cluster.advance(15)
    told = [e.reason for plan in decided for e in plan.events]
    assert told.count("LeftBehind") == 1
    assert reason(cluster) == "StorageUnreachable"
    cluster.storage_problem = None
    cluster.settle()
    cluster.advance(10)
    cluster.settle()
    assert cluster.name == "demo-s0-a2"


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


def test_deletion_that_drains_ends_when_the_trainer_has_saved_whatever_its_job_says() -> None:
    cluster = running()
    cluster.delete()
    cluster.settle()
    cluster.save(5)
    cluster.write_exit(75, "Drained")
    cluster.step()
    assert cluster.jobs["demo-s0-a1"].deleting
    cluster.settle()
    assert cluster.run.metadata.finalizers == []


@pytest.mark.parametrize(("reason", "seconds"), [("SecretNotFound", 0), ("SecretForbidden", 60)])
def test_deleted_run_whose_credentials_are_gone_leaves_its_folder_and_goes(reason: str, seconds: float) -> None:
    """Where they may only not be read, after a minute from when its folder was to go, however long the drain was."""
    cluster = running(cleanup={"artifacts": "Delete"})
    cluster.kubelet = False
    cluster.delete()
    cluster.settle()
    cluster.obstacle = Problem(reason, "Secret s3 does not exist in namespace ml: create it")
    cluster.kubelet = True
    cluster.advance(300)
    began = cluster.now
    for _ in range(40):
        decided = cluster.step()
        cluster.others_act()
        if not cluster.run.metadata.finalizers:
            break
        cluster.advance(5)
    assert seconds <= (cluster.now - began).total_seconds() <= seconds + 15
    told = {e.reason: e.message for e in [*cluster.events, *decided.events]}
    assert "s3://deepcoder/ml/demo-01234567" in told["ArtifactsLeft"]
    assert cluster.run.metadata.finalizers == []
    assert not cluster.artifacts_deleted


def test_deleted_run_whose_secret_may_not_be_read_for_a_moment_keeps_nothing_in_its_bucket() -> None:
    """As while an upgrade replaces the operator's roles."""
    cluster = running(cleanup={"artifacts": "Delete"})
    cluster.delete()
    cluster.settle()
    cluster.write_exit(75, "Drained")
    cluster.obstacle = Problem("SecretForbidden", "Secret s3 in namespace ml may not be read: grant it")
    for _ in range(8):
        cluster.step()
        cluster.others_act()
    cluster.advance(45)
    cluster.step()
    assert cluster.run.metadata.finalizers != []
    cluster.obstacle = None
    cluster.settle()
    assert cluster.artifacts_deleted
    assert cluster.run.metadata.finalizers == []


def test_folder_that_was_left_is_told_once_although_the_run_cannot_be_let_go() -> None:
    """A webhook refuses the run's last write: neither is the folder tried again before each try of that, nor told."""
    cluster = running(cleanup={"artifacts": "Delete"})
    cluster.delete()
    cluster.settle()
    cluster.write_exit(75, "Drained")
    cluster.obstacle = Problem("StorageUnreachable", "no route")
    for _ in range(8):
        cluster.step()
        cluster.others_act()
    assert cluster.run.status.attempt is None
    gone = Problem("SecretNotFound", "Secret s3 does not exist in namespace ml: create it", "DeleteArtifacts")
    refused = Problem("Forbidden", 'webhook "x" denied the request', "RemoveFinalizer")
    run, told = cluster.run, []
    for met in (gone, refused, refused, refused):
        decided = plan(run, replace(cluster.world(), obstacle=met), cluster.now, Policy())
        assert decided.actions == (RemoveFinalizer(),)
        told += [e.reason for e in decided.events]
        run = run.model_copy(update={"status": decided.status})
    assert told.count("ArtifactsLeft") == 1


def test_deletion_of_artifacts_is_tried_again_while_storage_is_away_and_then_given_up() -> None:
    cluster = running(cleanup={"artifacts": "Delete"})
    cluster.delete()
    cluster.settle()
    cluster.obstacle = Problem("StorageUnreachable", "no route")
    cluster.advance(300)
    for _ in range(10):
        cluster.step()
        cluster.others_act()
    assert cluster.run.metadata.finalizers
    cluster.advance(900)
    cluster.settle()
    assert cluster.run.metadata.finalizers == []
    assert "ArtifactsLeft" in [e.reason for e in cluster.events]


def test_deleted_run_keeps_its_folder_unless_its_spec_says_otherwise() -> None:
    cluster = running()
    cluster.save(10)
    cluster.delete()
    cluster.settle()
    cluster.write_exit(75, "Drained")
    cluster.settle()
    assert cluster.run.metadata.finalizers == []
    assert not cluster.artifacts_deleted


def test_run_that_was_never_accepted_has_no_folder_to_delete() -> None:
    """What is below its prefix is another's: that is why it was not accepted."""
    cluster = Cluster(make_run(cleanup={"artifacts": "Delete"}))
    cluster.storage_problem = Problem("PrefixTaken", "RUN.json belongs to another run: choose another prefix")
    cluster.settle()
    cluster.delete()
    cluster.settle()
    assert cluster.run.metadata.finalizers == []
    assert not cluster.artifacts_deleted


def test_finished_run_is_held_for_its_artifacts_alone() -> None:
    cluster = running(stages=[TRAIN])
    cluster.save(20, final=True)
    cluster.leave(0, "Completed")
    cluster.settle()
    assert cluster.run.status.phase is Phase.COMPLETE
    assert cluster.run.metadata.finalizers == [], "nothing is left to do at its deletion"
    cluster.edit(cleanup=Cleanup(artifacts=Artifacts.DELETE))
    cluster.settle()
    assert cluster.run.metadata.finalizers
    cluster.edit(cleanup=Cleanup(artifacts=Artifacts.RETAIN))
    cluster.settle()
    assert cluster.run.metadata.finalizers == []


def test_deletion_is_bounded() -> None:
    cluster = running()
    cluster.delete()
    cluster.settle()
    cluster.advance(301)
    cluster.settle()
    assert cluster.run.metadata.finalizers == []
