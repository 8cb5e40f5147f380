"""What tells why an attempt failed is saved before its cluster goes, once, and holds up nothing for long."""

from __future__ import annotations

import pytest
from plan_world import Cluster, running
from run_manifests import TRAIN

from deepcoder_contracts.layout import log_key
from deepcoder_operator.domain.draft import DeleteRayJob, Plan, SavePostMortem
from deepcoder_operator.domain.world import Problem


def kinds(decided: Plan) -> list[type]:
    return [type(a) for a in decided.actions]


def saved(cluster: Cluster) -> list[SavePostMortem]:
    """Of the passes until the run is at rest, those that save."""
    cluster.settle()
    return cluster.post_mortems


def test_failed_attempt_is_saved_before_its_job_is_deleted_with_why_it_failed() -> None:
    cluster = running()
    cluster.leave(1)
    decided = cluster.step()
    assert kinds(decided) == [SavePostMortem, DeleteRayJob]
    action = decided.actions[0]
    assert isinstance(action, SavePostMortem)
    assert action.attempt.ordinal == 1
    assert action.attempt.evidence
    assert len(saved(cluster)) == 1


@pytest.mark.parametrize("killed_after", [0, 1])
def test_operator_that_is_killed_in_between_saves_again(killed_after: int) -> None:
    cluster = running()
    cluster.leave(1)
    cluster.step(killed_after)
    assert kinds(cluster.step()) == [SavePostMortem, DeleteRayJob]


def test_post_mortem_is_not_tried_for_longer_than_its_time() -> None:
    cluster = running()
    cluster.leave(1)
    cluster.step(0)
    cluster.advance(30)
    assert kinds(cluster.step()) == [DeleteRayJob]


def test_drain_that_takes_too_long_is_saved() -> None:
    cluster = running()
    cluster.edit(suspend=True)
    cluster.settle()
    cluster.advance(300)
    assert len(saved(cluster)) == 1


@pytest.mark.parametrize("final", [True, False])
def test_success_is_saved_where_its_manifest_is_not_there(final: bool) -> None:
    cluster = running(stages=[TRAIN])
    cluster.save(20, final=final)
    cluster.leave(0, "Completed")
    assert len(saved(cluster)) == (0 if final else 1)


def test_success_that_storage_cannot_confirm_holds_no_gpu() -> None:
    cluster = running(stages=[TRAIN])
    cluster.save(20, final=True)
    cluster.storage_problem = Problem("StorageUnreachable", "no route")
    cluster.leave(0, "Completed")
    cluster.step()
    assert cluster.jobs["demo-s0-a1"].deleting
    cluster.storage_problem = None
    cluster.settle()
    assert cluster.run.status.phase == "Complete"


def test_attempt_that_saved_when_asked_to_needs_no_explanation() -> None:
    cluster = running()
    cluster.edit(suspend=True)
    cluster.settle()
    cluster.save(5)
    cluster.leave(75, "Drained")
    assert saved(cluster) == []


def test_logs_lie_beside_the_exit_record() -> None:
    assert log_key("short", 3, "driver.log") == "short/attempts/003/logs/driver.log"
