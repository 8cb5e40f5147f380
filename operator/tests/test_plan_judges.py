"""A live attempt's judges are those that its pods were made for, whatever the spec says since."""

from __future__ import annotations

from typing import Any

import pytest
from plan_world import Cluster, condition_of, make_run, reason

from deepcoder_contracts.api.run_spec import Sandbox
from deepcoder_contracts.labels import Judges, judges, pool_name, pool_of, requested_judges
from deepcoder_operator.controllers.known_secrets import templates_of
from deepcoder_operator.domain.world import PoolView

A: dict[str, Any] = {"poolRef": {"name": "a"}}
B: dict[str, Any] = {"poolRef": {"name": "b"}}
HOSTED: dict[str, Any] = {"together": {"credentialsSecretRef": {"name": "key"}}}
USES = {"a": Judges("a", None), "b": Judges("b", None), "hosted": Judges(None, "key")}


def running_at(sandbox: dict[str, Any]) -> Cluster:
    """A run whose first attempt runs with these judges."""
    cluster = Cluster(make_run(sandbox=sandbox))
    name = (sandbox.get("poolRef") or {}).get("name")
    cluster.pool = PoolView(name, True, uid=name) if name else None
    cluster.settle()
    cluster.start_job()
    cluster.settle()
    return cluster


def change(cluster: Cluster, sandbox: dict[str, Any]) -> None:
    """A user has the run judged elsewhere."""
    cluster.edit(sandbox=Sandbox.model_validate(sandbox))


@pytest.mark.parametrize(
    ("before", "after", "uses", "then"),
    [(A, B, "a", "b"), (A, HOSTED, "a", "hosted"), (HOSTED, B, "hosted", "b")],
    ids=["another pool", "hosted instead", "a pool instead"],
)
def test_live_attempt_keeps_its_judges_and_the_next_one_has_the_specs(
    before: dict[str, Any], after: dict[str, Any], uses: str, then: str
) -> None:
    cluster = running_at(before)
    change(cluster, after)
    cluster.settle()
    assert judges(cluster.run) == USES[uses]
    assert pool_name(cluster.run) == pool_of(cluster.run.model_dump(mode="json", by_alias=True)) == USES[uses].pool
    cluster.leave(1)
    cluster.settle()
    assert cluster.run.status.attempt is None
    assert judges(cluster.run) == USES[then]
    cluster.pool = PoolView("b", True, uid="b")
    cluster.advance(60)
    cluster.settle()
    assert cluster.run.status.attempt is not None
    assert cluster.run.status.attempt.ordinal == 2
    assert judges(cluster.run) == USES[then]


def test_attempt_that_an_earlier_release_recorded_has_the_specs_judges() -> None:
    cluster = running_at(A)
    status = cluster.run.status
    assert status.attempt is not None
    older = status.attempt.model_copy(update={"pool": None, "judge_secret": None})
    cluster.run = cluster.run.model_copy(update={"status": status.model_copy(update={"attempt": older})})
    assert judges(cluster.run) == requested_judges(cluster.run) == USES["a"]


def test_attempt_that_is_not_made_yet_is_made_for_the_specs_judges() -> None:
    cluster = Cluster(make_run(sandbox=A))
    cluster.pool = PoolView("a", True, uid="a")
    while cluster.run.status.attempt is None:
        cluster.step(0)
    assert not cluster.jobs
    change(cluster, B)
    cluster.settle()
    assert cluster.made == ["demo-s0-a1"]
    assert judges(cluster.run) == USES["b"]


def test_secrets_of_the_attempts_judges_are_known() -> None:
    cluster = running_at(A)
    change(cluster, HOSTED)
    cluster.settle()
    named = [volume["secret"]["secretName"] for volume in templates_of(cluster.run, 0)[0]["spec"]["volumes"]]
    assert named == ["s3", "a-token"]


def test_pool_that_the_attempt_uses_is_missed_though_the_spec_names_a_hosted_judge() -> None:
    cluster = running_at(A)
    change(cluster, HOSTED)
    cluster.pool = None
    cluster.settle()
    assert reason(cluster, "SandboxReady") == "PoolNotFound"
    assert "SandboxPool a " in condition_of(cluster, "SandboxReady").message
