"""What the last plan could not do: said while it is tried again, bounded for an attempt that cannot be made."""

from __future__ import annotations

from dataclasses import replace

from plan_world import Cluster, make_run

from deepcoder_contracts.api.attempt_status import AttemptState, Outcome
from deepcoder_contracts.api.failure import FailureReason
from deepcoder_operator.domain import draft as d
from deepcoder_operator.domain.conditions import find_condition
from deepcoder_operator.domain.plan import plan
from deepcoder_operator.domain.policy import Policy
from deepcoder_operator.domain.world import RAYJOB_INVALID, Problem

QUOTA = Problem("RayJobForbidden", "exceeded quota: count/rayjobs.ray.io")


def intended() -> Cluster:
    """A run whose first attempt is intended and not made."""
    cluster = Cluster(make_run())
    while cluster.run.status.attempt is None:
        cluster.step()
    cluster.jobs.clear()
    return cluster


def decide(cluster: Cluster, obstacle: Problem | None) -> d.Plan:
    return plan(cluster.run, replace(cluster.world(), obstacle=obstacle), cluster.now, Policy())


def progressing(decided: d.Plan) -> tuple[str, str, str]:
    found = find_condition(decided.status.conditions, "Progressing")
    assert found is not None
    return found.status, found.reason, found.message


def test_obstacle_is_said_and_the_attempt_is_tried_again() -> None:
    cluster = intended()
    decided = decide(cluster, QUOTA)
    assert progressing(decided) == ("False", QUOTA.reason, QUOTA.message)
    assert [e.reason for e in decided.events if e.warning] == [QUOTA.reason]
    assert any(isinstance(a, d.CreateAttempt) for a in decided.actions)
    cluster.run = cluster.run.model_copy(update={"status": decided.status})
    again = decide(cluster, QUOTA)
    assert [e.reason for e in again.events if e.warning] == [], "one event, not one with each try"
    assert progressing(decide(cluster, None))[:2] == ("True", "Creating")


def test_since_when_it_cannot_be_done_stays_while_it_is_tried_again() -> None:
    cluster = intended()
    first = decide(cluster, QUOTA)
    cluster.run = cluster.run.model_copy(update={"status": first.status})
    cluster.advance(30)
    assert decide(cluster, QUOTA).status.conditions == first.status.conditions


def test_attempt_that_cannot_be_made_within_its_deadline_fails_of_it() -> None:
    cluster = intended()
    cluster.advance(cluster.run.spec.stages[0].pre_running_deadline_seconds)
    waiting = decide(cluster, None)
    assert waiting.status.attempt is not None
    assert waiting.status.attempt.state is AttemptState.INTENDED, "after a restart nothing is known: it is tried first"
    failed = decide(cluster, QUOTA).status.attempt
    assert failed is not None
    assert (failed.state, failed.outcome) == (AttemptState.LEAVING, Outcome.FAILED)
    assert failed.reason is FailureReason.PRE_RUNNING_DEADLINE_EXCEEDED
    assert QUOTA.message in (failed.evidence or "")


def test_attempt_that_the_api_server_finds_invalid_fails_at_once() -> None:
    attempt = decide(intended(), Problem(RAYJOB_INVALID, "spec.x: wrong")).status.attempt
    assert attempt is not None
    assert attempt.reason is FailureReason.VALIDATION_FAILED


def test_artifacts_that_cannot_be_deleted_are_said_until_the_run_is_let_go() -> None:
    cluster = Cluster(make_run(cleanup={"artifacts": "Delete"}))
    cluster.settle()
    cluster.delete()
    while cluster.run.status.attempt is not None:
        cluster.step(0)
        cluster.jobs.clear()
        cluster.advance(5)
    refused = Problem("CredentialsRefused", "the key was revoked")
    decided = decide(cluster, refused)
    assert d.DeleteArtifacts() in decided.actions
    assert progressing(decided) == ("False", refused.reason, refused.message)


def test_run_with_nothing_to_do_says_nothing_of_an_old_obstacle() -> None:
    cluster = intended()
    cluster.step()
    cluster.start_job()
    cluster.settle()
    assert progressing(decide(cluster, QUOTA))[:2] == ("True", "Running")
