"""What keeps an attempt's pods from being there is named where people look first: in the run's conditions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_world import Cluster, condition_of, make_run, running
from run_manifests import TRAIN

from deepcoder_contracts.api.attempt_status import AttemptState
from deepcoder_contracts.api.run_status import Phase
from deepcoder_operator.domain.world import ClusterView, PodView, cluster_view, parse_time, pod_view

NO_ROOM = "Unschedulable: 0/4 nodes are available: 4 Insufficient nvidia.com/gpu."
QUOTA = 'pods "demo-s0-a1-head" is forbidden: exceeded quota: team, requested: pods=1, used: pods=9, limited: pods=9'


def starting(*pods: PodView, provisioned: ClusterView, **stage: int) -> Cluster:
    """A run whose RayJob is made and has these pods."""
    cluster = Cluster(make_run(stages=[TRAIN | stage]))
    cluster.settle()
    cluster.pods = {p.name: p for p in pods}
    cluster.provisioned = provisioned
    cluster.settle()
    assert cluster.run.status.phase is Phase.STARTING
    return cluster


def pending(name: str, waiting: str, ordinal: int = 1) -> PodView:
    return PodView(name, f"uid-{name}", "sampler", ordinal, phase="Pending", waiting=waiting)


def test_pod_that_fits_nowhere_is_named_in_the_conditions() -> None:
    cluster = starting(pending("sampler-0", NO_ROOM), provisioned=ClusterView("c", ready=False))
    for name in ("ClusterReady", "Progressing"):
        assert f"pod sampler-0: {NO_ROOM}" in condition_of(cluster, name).message
    assert condition_of(cluster, "ClusterReady").status == "False"


def test_what_many_pods_wait_for_is_said_once_and_other_reasons_are_counted() -> None:
    waits = [pending(f"sampler-{i}", NO_ROOM) for i in range(9)]
    others = [pending(f"learner-{i}", f"ErrImagePull: no such image: registry/{i}") for i in range(4)]
    cluster = starting(*waits, *others, provisioned=ClusterView("c", ready=False))
    told = condition_of(cluster, "ClusterReady").message
    assert told.count(NO_ROOM) == 1
    assert told.count("ErrImagePull") == 2
    assert told.endswith("; and 2 other reasons")


def test_pods_of_an_attempt_before_are_not_what_this_one_waits_for() -> None:
    cluster = starting(pending("old", NO_ROOM, ordinal=0), provisioned=ClusterView("c", ready=False))
    assert NO_ROOM not in condition_of(cluster, "ClusterReady").message


def test_pods_that_the_api_server_refuses_are_told_though_no_pod_can_tell() -> None:
    cluster = starting(provisioned=ClusterView("c", ready=False, trouble=QUOTA), preRunningDeadlineSeconds=60)
    for name in ("ClusterReady", "Progressing"):
        assert QUOTA in condition_of(cluster, name).message
    cluster.advance(60)
    cluster.settle()
    assert any(e.reason == "AttemptFailed" and QUOTA in e.message for e in cluster.events), "and where it is given up"


def test_pod_that_is_missing_in_mid_run_is_named_too() -> None:
    cluster = running(stages=[TRAIN])
    cluster.pods["sampler-1"] = pending("sampler-1", NO_ROOM)
    cluster.provisioned = ClusterView("c", ready=False)
    cluster.advance(60)
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING
    assert NO_ROOM in condition_of(cluster, "ClusterReady").message


def test_stall_for_want_of_a_pod_says_what_that_waits_for() -> None:
    """A sampler that finds no node any more holds up the step, and goes with the attempt that is ended for it."""
    cluster = running(stages=[TRAIN | {"stallSeconds": 60}])
    cluster.pods["sampler-1"] = pending("sampler-1", NO_ROOM)
    cluster.advance(61)
    cluster.settle()
    (told,) = [e.message for e in cluster.events if e.reason == "AttemptFailed"]
    assert "no step for 60 s" in told
    assert f"pod sampler-1: {NO_ROOM}" in told


def test_what_an_attempt_has_failed_of_is_said_while_its_pods_end() -> None:
    """Which takes as long as a trainer that hangs is given to save."""
    cluster = running(stages=[TRAIN | {"stallSeconds": 60}])
    cluster.kubelet = False
    cluster.advance(61)
    cluster.settle()
    assert cluster.run.status.phase is Phase.BACKOFF
    told = condition_of(cluster, "Progressing").message
    assert told.startswith("attempt 1 has ended (Stalled: no step for 60 s")
    assert "still left: pod demo-s0-a1-head" in told


def test_kuberay_is_quoted_as_long_as_it_says_so() -> None:
    refused = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreateHeadPod",
               "message": f"FailedCreateHeadPod\n{QUOTA}"}  # fmt: skip
    status = {"conditions": [{"type": "HeadPodReady", "status": "False", "message": "Head Pod not found"}, refused]}
    made = {"metadata": {"name": "c", "uid": "c"}, "status": status}
    assert cluster_view(made).trouble == f"FailedCreateHeadPod {QUOTA}"
    refused["status"] = "False"
    assert cluster_view(made).trouble == ""


def test_what_is_told_of_a_pod_is_its_trainers_and_not_of_a_container_that_was_added() -> None:
    """A kubelet lists statuses by name, so a sidecar's comes first."""
    ended = {"terminated": {"reason": "Error", "exitCode": 1, "finishedAt": "2026-01-01T00:00:00Z", "message": "lost"}}
    later = {"terminated": {"reason": "OOMKilled", "exitCode": 137, "finishedAt": "2026-01-01T00:00:09Z"}}
    sidecar = {"name": "istio-proxy", "imageID": "istio@sha256:1", "restartCount": 3, "state": {"running": {}}}
    trainer = {"name": "ray-head", "imageID": "trainer@sha256:2", "restartCount": 0, "state": ended}
    pod = {"metadata": {"name": "h", "uid": "h"}, "status": {"containerStatuses": [sidecar, trainer]}}
    seen = pod_view(pod)
    assert (seen.image_id, seen.restarts) == ("trainer@sha256:2", 0)
    assert (seen.terminated, seen.exit_code, seen.message, seen.finished) == ("Error", 1, "lost", None)
    sidecar["state"] = later
    seen = pod_view(pod)
    assert (seen.terminated, seen.exit_code, seen.message) == ("Error", 1, "lost")
    assert seen.finished == parse_time("2026-01-01T00:00:09Z"), "it has its node until all have ended"


def test_image_of_an_init_container_that_cannot_be_pulled_is_what_its_pod_waits_for() -> None:
    waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image registry/none"}
    later = {"name": "ray-worker", "state": {"waiting": {"reason": "PodInitializing"}}}
    status = {
        "phase": "Pending",
        "initContainerStatuses": [{"name": "wait-gcs-ready", "state": {"waiting": waiting}}],
        "containerStatuses": [later],
    }
    pod = {"metadata": {"name": "w", "uid": "w"}, "status": status}
    assert pod_view(pod).waiting == "ImagePullBackOff: Back-off pulling image registry/none"


def test_attempt_is_bound_to_the_head_that_stays_and_not_to_one_that_was_going_when_it_was_first_seen() -> None:
    cluster = Cluster(make_run())
    cluster.settle()
    cluster.start_job()
    cluster.change_job(job_status="")
    cluster.kubelet = False
    first = cluster.pods[f"{cluster.name}-head"]
    cluster.pods[first.name] = replace(first, deleting=True)
    cluster.step()
    attempt = cluster.run.status.attempt
    assert attempt is not None
    assert (attempt.state, attempt.head_uid) == (AttemptState.STARTING, None)
    cluster.pods["next-head"] = replace(first, name="next-head", uid="next")
    cluster.step()
    attempt = cluster.run.status.attempt
    assert attempt is not None
    assert (attempt.state, attempt.head_pod, attempt.head_uid) == (AttemptState.STARTING, "next-head", "next")


@pytest.mark.parametrize("how", ["suspended", "evicted"])
def test_attempt_whose_program_does_not_run_yet_has_nothing_to_save_and_gives_its_gpus_back_at_once(how: str) -> None:
    cluster = Cluster(make_run())
    cluster.settle()
    cluster.start_job()
    cluster.change_job(job_status="")
    cluster.settle()
    if how == "suspended":
        cluster.edit(suspend=True)
    else:
        cluster.end_pod(f"{cluster.name}-head")
    name = cluster.name
    cluster.step()
    assert cluster.jobs[name].deleting
