"""GPU-seconds: each is counted once, and those that were for nothing are told apart."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from plan_world import Cluster, make_run
from run_manifests import EVALUATE

from deepcoder_contracts.api.run_status import Phase
from deepcoder_contracts.progress import TrainerPhase
from deepcoder_operator.domain.world import PodView


def with_gpus(**spec: object) -> Cluster:
    """A run whose first attempt runs on eight GPUs."""
    cluster = Cluster(make_run(**spec), gpus=8)
    cluster.settle()
    start(cluster)
    return cluster


def start(cluster: Cluster) -> None:
    cluster.start_job()
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING


def fail(cluster: Cluster) -> None:
    cluster.leave(1)
    cluster.settle()


def figures(cluster: Cluster) -> tuple[str, str]:
    """Used and wasted GPU-seconds."""
    usage = cluster.run.status.usage
    return usage.gpu_seconds, usage.wasted_gpu_seconds


def learner(cluster: Cluster) -> PodView:
    return next(p for p in cluster.pods.values() if p.gpus)


def test_pod_that_ended_early_wastes_no_more_than_it_used() -> None:
    cluster = with_gpus()
    cluster.advance(100)
    del cluster.pods[learner(cluster).name]
    cluster.settle()
    cluster.advance(900)
    fail(cluster)
    assert figures(cluster) == ("800", "800")


def test_time_before_the_program_ran_is_wasted_too_where_the_attempt_failed() -> None:
    cluster = Cluster(make_run(), gpus=8)
    cluster.settle()
    cluster.start_job()
    cluster.change_job(job_status="", deployment_status="Initializing")
    cluster.settle()
    cluster.advance(50)
    cluster.change_job(job_status="RUNNING", deployment_status="Running")
    cluster.settle()
    cluster.advance(50)
    fail(cluster)
    assert figures(cluster) == ("800", "800")


def test_what_came_before_the_last_checkpoint_is_not_wasted() -> None:
    cluster = with_gpus()
    cluster.advance(100)
    cluster.save(5)
    cluster.advance(50)
    fail(cluster)
    assert figures(cluster) == ("1200", "400")
    latest = cluster.run.status.latest_checkpoint
    assert latest is not None
    assert latest.gpu_seconds == "800"


def test_success_wastes_nothing() -> None:
    cluster = with_gpus()
    cluster.advance(100)
    cluster.save(20, final=True)
    cluster.advance(5)
    cluster.leave(0, "Completed")
    cluster.settle()
    assert figures(cluster) == ("840", "0")


def test_what_went_into_a_checkpoint_that_storage_has_lost_is_wasted() -> None:
    cluster = with_gpus()
    cluster.advance(100)
    cluster.save(5)
    kept = cluster.stored["short"]
    cluster.edit(suspend=True)
    cluster.settle()
    cluster.write_exit(75, "Drained")
    cluster.settle()
    assert figures(cluster) == ("800", "0")
    cluster.edit(suspend=False)
    cluster.settle()
    start(cluster)
    cluster.advance(100)
    cluster.save(10)
    cluster.advance(10)
    fail(cluster)
    assert figures(cluster) == ("1680", "80")
    cluster.stored["short"] = kept
    cluster.advance(700)
    cluster.settle()
    start(cluster)
    fail(cluster)
    assert figures(cluster) == ("1680", "880")
    latest = cluster.run.status.latest_checkpoint
    assert latest is not None
    assert (latest.step, latest.gpu_seconds) == (5, "800")
    assert [c.step for c in cluster.run.status.checkpoints] == [5]


def test_checkpoint_that_its_successor_does_not_come_from_was_lost_though_nobody_saw_it() -> None:
    cluster = with_gpus()
    cluster.advance(100)
    cluster.save(5)
    kept = cluster.stored["short"]
    fail(cluster)
    cluster.advance(700)
    cluster.settle()
    start(cluster)
    cluster.advance(100)
    cluster.save(10)
    fail(cluster)
    cluster.stored["short"] = kept
    cluster.advance(700)
    cluster.settle()
    start(cluster)
    cluster.advance(100)
    cluster.save(15)
    fail(cluster)
    assert figures(cluster) == ("2400", "800")
    assert [c.step for c in cluster.run.status.checkpoints] == [15, 5]


def test_lost_checkpoint_of_the_attempt_itself_is_wasted_once() -> None:
    """Not also at the cost of the attempt before."""
    cluster = with_gpus()
    cluster.advance(100)
    cluster.save(2)
    fail(cluster)
    cluster.advance(700)
    cluster.settle()
    start(cluster)
    cluster.advance(100)
    cluster.save(5)
    kept = cluster.stored["short"]
    fail_after_looking(cluster)
    cluster.save(10)
    fail_after_looking(cluster)
    cluster.stored["short"] = kept
    fail(cluster)
    assert figures(cluster) == ("3200", "1600")


def fail_after_looking(cluster: Cluster) -> None:
    """The trainer says that it drains, so storage is asked; then time passes."""
    cluster.edit(suspend=True)
    cluster.settle()
    cluster.advance(10)
    cluster.report(5, phase=TrainerPhase.DRAINING)
    cluster.settle()
    cluster.advance(90)


def test_drain_without_a_checkpoint_wastes_what_came_after_the_last() -> None:
    cluster = with_gpus()
    cluster.advance(100)
    cluster.edit(suspend=True)
    cluster.settle()
    cluster.advance(300)
    cluster.settle()
    assert cluster.run.status.phase is Phase.SUSPENDED
    assert figures(cluster) == ("3200", "3200")


def test_evaluation_that_was_stopped_has_no_checkpoint_and_wastes_all_of_it_although_it_saved() -> None:
    cluster = with_gpus(stages=[EVALUATE | {"evaluate": EVALUATE["evaluate"] | {"targets": ["Base"]}}])
    cluster.advance(100)
    cluster.edit(suspend=True)
    cluster.settle()
    cluster.write_exit(75, "Drained")
    cluster.settle()
    assert figures(cluster) == ("800", "800")


def test_pods_left_behind_by_a_lost_node_go_on_to_cost_and_for_nothing() -> None:
    cluster = with_gpus()
    cluster.advance(100)
    cluster.save(5)
    cluster.kubelet = False
    fail(cluster)
    cluster.advance(400)
    cluster.settle()
    assert cluster.run.status.attempt is None, "the run went on without them"
    cluster.advance(500)
    cluster.kubelet = True
    cluster.settle()
    assert figures(cluster) == ("8000", "7200")


@pytest.mark.parametrize("said", ["rayjob", "heartbeat", "nothing"])
def test_end_that_nobody_saw_is_what_was_last_known_and_never_the_whole_outage(said: str) -> None:
    cluster = with_gpus()
    cluster.advance(40)
    if said == "heartbeat":
        cluster.report(1)
        cluster.settle()
    cluster.advance(60)
    if said == "rayjob":
        cluster.change_job(ended=cluster.now)
    cluster.pods = {}
    cluster.advance(36_000)
    cluster.watching_since = cluster.now
    fail(cluster)
    seconds = {"rayjob": 100, "heartbeat": 40, "nothing": 0}[said]
    assert figures(cluster) == (str(8 * seconds), str(8 * seconds))
    assert cluster.run.status.usage.estimated


def test_pod_that_had_ended_when_it_was_first_seen_counts_exactly() -> None:
    cluster = with_gpus()
    seen = learner(cluster)
    began = cluster.now
    cluster.advance(90)
    cluster.pods["short"] = replace(
        seen, name="short", uid="s", scheduled=began, finished=began + timedelta(seconds=30)
    )
    cluster.advance(10)
    fail(cluster)
    assert figures(cluster) == (str(8 * 130), str(8 * 130))


def test_clock_that_was_set_back_takes_nothing_away() -> None:
    cluster = with_gpus()
    cluster.advance(-3600)
    fail(cluster)
    assert figures(cluster) == ("0", "0")


def test_list_of_pods_is_bounded_and_says_when_it_was_too_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepcoder_operator.domain.usage.MAX_POD_ENTRIES", 4)
    cluster = with_gpus()
    pod = learner(cluster)
    for n in range(6):
        cluster.pods[f"w{n}"] = replace(pod, name=f"w{n}")
    cluster.step()
    usage = cluster.run.status.usage
    assert len(usage.pods) == 4
    assert usage.estimated


@pytest.mark.parametrize("hours", [-1, 1])
def test_pod_that_was_scheduled_by_a_clock_that_differs_makes_an_estimate(hours: int) -> None:
    cluster = with_gpus()
    cluster.advance(100)
    seen = learner(cluster)
    wrong = cluster.now + timedelta(hours=hours)
    cluster.pods["late"] = replace(seen, name="late", uid="l", scheduled=wrong)
    cluster.settle()
    assert cluster.run.status.usage.estimated


@pytest.mark.parametrize("hours", [-1, 1])
def test_checkpoint_that_was_committed_by_a_clock_that_differs_makes_an_estimate(hours: int) -> None:
    cluster = with_gpus()
    cluster.advance(100)
    right = cluster.now
    cluster.now = right + timedelta(hours=hours)
    cluster.save(5)
    cluster.now = right
    cluster.advance(50)
    fail(cluster)
    assert cluster.run.status.usage.estimated


def test_clocks_that_agree_make_no_estimate() -> None:
    cluster = with_gpus()
    cluster.advance(100)
    cluster.save(5)
    cluster.advance(50)
    fail(cluster)
    assert figures(cluster) == ("1200", "400")
    assert not cluster.run.status.usage.estimated
