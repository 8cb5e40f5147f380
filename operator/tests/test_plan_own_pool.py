"""The SandboxPool of a run: waited for, made with an attempt, gone when there is no work for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_world import UID, Cluster, condition_of, make_run, reason, running
from run_manifests import LONGER, TRAIN

from deepcoder_contracts.api.attempt_status import AttemptState
from deepcoder_contracts.api.run_status import Phase
from deepcoder_operator.domain import draft as d
from deepcoder_operator.domain.bounds import POLL_SECONDS
from deepcoder_operator.domain.plan import plan
from deepcoder_operator.domain.policy import Policy
from deepcoder_operator.domain.world import ClusterView, PodView, PoolView, Problem


def test_missing_pool_is_waited_for() -> None:
    cluster = Cluster(make_run(sandbox={"poolRef": {"name": "shared"}}))
    cluster.settle()
    assert reason(cluster, "Accepted") == "PoolNotFound"
    cluster.pool = PoolView("shared", True)
    cluster.settle()
    assert cluster.made == ["demo-s0-a1"]


def test_a_run_with_a_hosted_judge_needs_no_pool_and_says_that_nobody_watches_the_judge() -> None:
    cluster = running(stages=[TRAIN], sandbox={"together": {"credentialsSecretRef": {"name": "together"}}})
    assert cluster.pool is None
    assert reason(cluster, "SandboxReady") == "Hosted"
    condition = next(c for c in cluster.run.status.conditions if c.type == "SandboxReady")
    assert condition.status == "Unknown"
    cluster.save(20, final=True)
    cluster.leave(0, "Completed")
    cluster.settle()
    assert cluster.run.status.phase is Phase.COMPLETE
    assert cluster.run.status.usage.sandbox_seconds == "0"


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
    cluster.start_job()
    cluster.settle()
    assert cluster.pool is not None
    assert cluster.pool.uid != first.uid
    cluster.save(20, final=True)
    cluster.leave(0, "Completed")
    cluster.settle()
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
    cluster.start_job()
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
    cluster.start_job()
    cluster.settle()
    assert cluster.pool is not None
    assert not cluster.pool.deleting


def let_head_in(cluster: Cluster) -> None:
    """KubeRay has made the head's pod; nothing of it has started."""
    attempt = cluster.run.status.attempt
    assert attempt is not None
    name = f"{attempt.name}-head"
    cluster.pods[name] = PodView(name, "head-uid", "head", attempt.ordinal, phase="Pending")


def test_judges_are_made_when_the_head_is_let_in_and_none_while_it_is_refused() -> None:
    """A quota or a policy refuses the pod: judges would hold CPUs for as long as the attempt waits."""
    cluster = Cluster(make_run(stages=[TRAIN]), provisioned=ClusterView("c", False, "exceeded quota: none"))
    cluster.settle()
    cluster.advance(1800)
    cluster.settle()
    assert cluster.made == ["demo-s0-a1"]
    assert "exceeded quota" in condition_of(cluster, "ClusterReady").message
    assert cluster.pool is None
    let_head_in(cluster)
    cluster.step()
    assert cluster.pool is not None, "judges start while the cluster does"


@pytest.mark.parametrize(("seconds", "kept"), [(30, True), (90, False)])
def test_judges_of_before_go_when_the_next_head_is_refused_for_longer_than_a_moment(seconds: int, kept: bool) -> None:
    cluster = running(stages=[TRAIN])
    cluster.leave(1)
    cluster.settle()
    cluster.advance(10)
    cluster.settle()
    assert cluster.name == "demo-s0-a2"
    cluster.advance(seconds)
    cluster.settle()
    assert (cluster.pool is not None) is kept


def queued() -> Cluster:
    """A run whose attempt waits for quota."""
    cluster = Cluster(make_run(stages=[TRAIN], scheduling={"queueName": "team"}))
    cluster.settle()
    assert reason(cluster) == "WaitingForQuota"
    assert cluster.pool is None
    return cluster


def test_pool_is_made_once_there_is_quota_and_not_before() -> None:
    cluster = queued()
    cluster.advance(3600)
    cluster.settle()
    assert cluster.pool is None
    cluster.change_job(suspended=False)
    let_head_in(cluster)
    cluster.step()
    assert cluster.pool is not None


def test_pool_that_vanishes_under_an_attempt_is_made_again() -> None:
    cluster = running(stages=[TRAIN])
    cluster.pool = None
    cluster.step()
    assert cluster.pool is not None


def test_attempt_that_drains_has_no_pool_made_again() -> None:
    cluster = running(stages=[TRAIN])
    cluster.edit(suspend=True)
    cluster.pool = None
    cluster.settle()
    assert cluster.run.status.phase is Phase.DRAINING
    assert cluster.pool is None


@pytest.mark.parametrize(("seconds", "kept"), [(30, True), (90, False)])
def test_judges_of_before_are_kept_for_a_moment_while_quota_is_waited_for(seconds: int, kept: bool) -> None:
    cluster = queued()
    cluster.start_job()
    cluster.settle()
    cluster.leave(1)
    cluster.settle()
    cluster.advance(60)
    cluster.settle()
    assert reason(cluster) == "WaitingForQuota"
    cluster.advance(seconds)
    cluster.settle()
    assert (cluster.pool is not None) is kept
    cluster.start_job()
    cluster.settle()
    assert cluster.pool is not None


def test_attempt_with_quota_waits_for_the_pool_from_before_to_be_gone_and_has_one_made_then() -> None:
    cluster = queued()
    cluster.pool = PoolView("demo-sandbox", True, uid="old", owner_uid=UID, deleting=True)
    cluster.change_job(suspended=False)
    let_head_in(cluster)
    for _ in range(3):
        assert cluster.step().requeue_after <= POLL_SECONDS
    cluster.others_act()
    cluster.step()
    assert cluster.pool is not None
    assert cluster.pool.uid != "old"


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
    cluster.start_job()
    cluster.settle()
    assert cluster.pool is not None
    cluster.pool = replace(cluster.pool, replicas=2)
    cluster.advance(60)
    cluster.settle()
    assert cluster.run.status.usage.sandbox_seconds == "240"


def refused_pool(cluster: Cluster) -> d.Plan:
    """A pass over a run without its pool, which the pass before could not make."""
    cluster.pool = None
    conflict = Problem("NameConflict", "SandboxPool demo-sandbox exists and is not this run's: delete it")
    return plan(cluster.run, replace(cluster.world(), obstacle=conflict), cluster.now, Policy())


def test_attempt_that_runs_says_of_its_pool_alone_that_it_cannot_be_made() -> None:
    cluster = running(stages=[TRAIN])
    decided = refused_pool(cluster)
    told = {c.type: (c.status, c.reason) for c in decided.status.conditions}
    assert told["SandboxReady"] == ("False", "NameConflict")
    assert told["Progressing"] == ("True", "Running")
    assert [e.reason for e in decided.events if e.warning] == ["NameConflict"]


def test_attempt_that_stalls_goes_although_its_pool_cannot_be_made() -> None:
    """Actions are done up to the first that cannot be."""
    cluster = running(stages=[TRAIN])
    cluster.advance(cluster.run.spec.stages[0].stall_seconds + 1)
    first = refused_pool(cluster)
    assert first.status.attempt is not None
    assert first.status.attempt.state is AttemptState.LEAVING
    assert not any(isinstance(action, d.EnsurePool) for action in first.actions)
