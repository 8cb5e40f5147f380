"""A status that a newer release wrote, with fields and words that this one does not know: the run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Any, get_args

import pytest
from plan_world import Cluster, failed_of, make_run, running
from pydantic import BaseModel, ValidationError

from deepcoder_contracts.api.failure import FailurePolicy, FailureReason
from deepcoder_contracts.api.run_status import Phase, RunStatus
from deepcoder_contracts.api.sandboxpool import SandboxPoolStatus

NEW = "SomethingNewer"


def read(cluster: Cluster, wire: dict[str, Any]) -> None:
    """The operator is downgraded: the status comes back as the newer one left it."""
    cluster.run = cluster.run.model_copy(update={"status": RunStatus.model_validate(wire)})


def enums_of(annotation: object, seen: frozenset[object] = frozenset(), path: str = "") -> Iterator[str]:
    """Fields with an enum, below a model."""
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, StrEnum):
            yield path
        elif isinstance(part, type) and issubclass(part, BaseModel) and part not in seen:
            for name, field in part.model_fields.items():
                yield from enums_of(field.annotation, seen | {part}, f"{part.__name__}.{name}")
        elif part is not annotation:
            yield from enums_of(part, seen, path)


LENIENT = {
    "AttemptStatus.state", "AttemptStatus.drain_cause", "AttemptStatus.outcome", "AttemptStatus.reason",
    "BackoffStatus.reason", "Condition.status", "RunStatus.phase", "StageStatus.phase",
}  # fmt: skip


def test_each_enum_of_a_status_is_one_that_is_read_leniently_below() -> None:
    assert {*enums_of(RunStatus), *enums_of(SandboxPoolStatus)} == LENIENT


def with_all_enums() -> Cluster:
    """A run whose status has a value in each enum."""
    cluster = running()
    cluster.leave(1)
    cluster.settle()
    cluster.advance(600)
    cluster.settle()
    cluster.start_job()
    cluster.settle()
    cluster.edit(suspend=True)
    cluster.step()
    return cluster


def test_status_with_unknown_words_and_fields_everywhere_is_read() -> None:
    cluster = with_all_enums()
    wire = cluster.run.status.to_wire()
    wire |= {"phase": NEW, "newer": {"a": 1}}
    wire["attempt"] |= {"state": NEW, "drainCause": NEW, "outcome": NEW, "reason": NEW, "newer": [1]}
    wire["backoff"] |= {"reason": NEW, "newer": 1}
    for part in (*wire["conditions"], *wire["stages"]):
        part["newer"] = 1
    wire["conditions"][0]["status"] = NEW
    wire["stages"][0]["phase"] = NEW
    status = RunStatus.model_validate(wire)
    assert status.attempt is not None
    assert status.attempt.reason is FailureReason.UNKNOWN
    assert RunStatus.model_validate(status.to_wire()) == status


def test_running_attempt_in_a_state_of_a_newer_release_is_followed_to_its_end() -> None:
    cluster = running()
    wire = cluster.run.status.to_wire()
    wire["phase"] = wire["attempt"]["state"] = NEW
    read(cluster, wire)
    cluster.settle()
    assert cluster.run.status.phase is Phase.RUNNING
    cluster.save(20, final=True)
    cluster.leave(0, "Completed")
    cluster.settle()
    assert cluster.name == "demo-s1-a2"


def test_attempt_that_stops_for_a_newer_reason_stops_within_its_time() -> None:
    cluster = running()
    cluster.edit(suspend=True)
    cluster.step()
    cluster.edit(suspend=False)
    wire = cluster.run.status.to_wire()
    wire["attempt"]["drainCause"] = wire["attempt"]["state"] = NEW
    read(cluster, wire)
    cluster.settle()
    assert cluster.run.status.phase is Phase.DRAINING
    cluster.advance(300)
    cluster.settle()
    assert failed_of(cluster) is FailureReason.HEAD_LOST


def test_ended_attempt_with_a_newer_outcome_is_settled_from_what_storage_says() -> None:
    cluster = running()
    cluster.kubelet = False
    cluster.leave(1)
    cluster.settle()
    wire = cluster.run.status.to_wire()
    wire["attempt"] |= {"state": NEW, "outcome": NEW, "reason": NEW}
    read(cluster, wire)
    cluster.kubelet = True
    cluster.settle()
    assert failed_of(cluster) is FailureReason.APPLICATION


def test_pause_after_a_newer_failure_is_kept() -> None:
    cluster = running()
    cluster.leave(1)
    cluster.settle()
    wire = cluster.run.status.to_wire()
    wire["backoff"]["reason"] = NEW
    read(cluster, wire)
    assert cluster.run.status.backoff is not None
    cluster.advance(600)
    cluster.settle()
    assert cluster.name == "demo-s0-a2"


def test_spec_is_read_strictly_all_the_same() -> None:
    rule = {"name": "r", "onReasons": [NEW], "action": "Retry"}
    with pytest.raises(ValidationError, match="onReasons"):
        FailurePolicy.model_validate({"rules": [rule]})
    assert make_run(failurePolicy={"rules": [rule | {"onReasons": ["Unknown"]}]})
