"""A new run is accepted, held and begun in one pass: each further pass would cost a status write, and reads."""

from __future__ import annotations

import pytest
from plan_world import Cluster, make_run, reason
from run_manifests import EVALUATE

from deepcoder_contracts.api.attempt_status import AttemptState
from deepcoder_contracts.api.run import FINALIZER
from deepcoder_contracts.api.run_status import Phase
from deepcoder_operator.domain import draft as d
from deepcoder_operator.domain.conditions import is_true
from deepcoder_operator.domain.world import Problem


def kinds(decided: d.Plan) -> list[type[d.Action]]:
    return [type(a) for a in decided.actions]


def test_first_pass_accepts_a_run_holds_it_and_begins_its_attempt() -> None:
    cluster = Cluster(make_run())
    decided = cluster.step()
    assert kinds(decided) == [d.AddFinalizer, d.EnsureRunObjects, d.CreateAttempt], "held before anything is made"
    assert is_true(cluster.run.status.conditions, "Accepted")
    assert cluster.made == ["demo-s0-a1"]


@pytest.mark.parametrize("actions", range(4))
def test_first_pass_that_is_cut_short_anywhere_is_made_up_for(actions: int) -> None:
    cluster = Cluster(make_run())
    cluster.step(actions)
    attempt = cluster.run.status.attempt
    assert attempt is not None
    assert attempt.state is AttemptState.INTENDED, "written before anything is carried out"
    cluster.settle()
    assert cluster.made == ["demo-s0-a1"]
    assert cluster.run.metadata.finalizers == [FINALIZER]
    assert cluster.run.status.ordinal == 1


def test_run_that_is_deleted_before_it_is_held_makes_nothing() -> None:
    cluster = Cluster(make_run())
    cluster.step(0)
    cluster.delete()
    cluster.settle()
    assert cluster.made == []


@pytest.mark.parametrize("actions", range(2))
def test_run_whose_bucket_is_slow_says_at_once_that_it_is_seen(actions: int) -> None:
    cluster = Cluster(make_run(), slow_bucket=True)
    decided = cluster.step(actions)
    assert kinds(decided) == [d.AddFinalizer]
    assert cluster.run.status.phase is Phase.PENDING
    assert cluster.run.status.attempt is None
    cluster.settle()
    assert cluster.made == ["demo-s0-a1"]


def test_run_is_held_although_its_bucket_is_away() -> None:
    cluster = Cluster(make_run(), storage_problem=Problem("SecretNotFound", "create it"))
    decided = cluster.step()
    assert kinds(decided) == [d.AddFinalizer]
    assert cluster.run.status.phase is Phase.PENDING


def test_later_attempt_is_made_in_the_pass_that_intends_it() -> None:
    cluster = Cluster(make_run(failurePolicy={"backoff": {"initialSeconds": 0}}))
    cluster.settle()
    cluster.start_job()
    cluster.settle()
    cluster.leave(1)
    for _ in range(20):
        decided = cluster.step()
        if any(isinstance(a, d.CreateAttempt) for a in decided.actions):
            break
        cluster.others_act()
        assert cluster.run.status.ordinal == 1, "intended, and not made at once"
    assert cluster.made == ["demo-s0-a1", "demo-s0-a2"]


def test_run_that_only_evaluates_says_what_unless_it_starts_from_a_checkpoint() -> None:
    datasets = {"datasets": EVALUATE["evaluate"]["datasets"]}
    refused = Cluster(make_run(stages=[EVALUATE | {"evaluate": datasets}]))
    refused.settle()
    assert refused.made == []
    assert reason(refused, "Accepted") == "NothingToEvaluate"
    of_base = Cluster(make_run(stages=[EVALUATE | {"evaluate": datasets | {"targets": ["Base"]}}]))
    origin = {"uri": "s3://deepcoder/ml/demo-89abcdef/short/step-000010.a001"}
    of_origin = Cluster(make_run(stages=[EVALUATE | {"evaluate": datasets}], **{"from": origin}))
    for accepted in (of_base, of_origin):
        accepted.settle()
        assert accepted.made == ["demo-s0-a1"]
