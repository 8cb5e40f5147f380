"""The run controller: from what a pass plans, onto what it writes, and what wakes the next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from plan_world import UID
from run_harness import KEY, OTHER_UID, Harness, Observer, manifest, phases, progressing, standing

from deepcoder_operator.controllers import reconcile
from deepcoder_operator.domain.draft import CreateAttempt, Plan
from deepcoder_operator.domain.world import Problem, StorageView, World
from deepcoder_operator.kube import errors


@pytest.fixture
async def ground() -> AsyncIterator[Harness]:
    async with standing() as made:
        yield made


async def test_attempt_is_made_without_a_write_more_than_that_of_its_intent(ground: Harness) -> None:
    ground.controller.seen(manifest())
    await ground.until(lambda: any(isinstance(a, CreateAttempt) for a in ground.executor.done))
    assert [w["status"]["attempt"]["state"] for w in ground.api.writes] == ["Intended"]
    assert progressing(ground.api) == ("True", "Creating")


async def test_change_during_a_pass_makes_it_plan_again_instead_of_writing_an_old_plan(ground: Harness) -> None:
    """The run is suspended while the pass looks at storage: no attempt may be intended on the older view."""

    def suspend() -> None:
        changed = manifest(2, generation=2)
        changed["spec"]["suspend"] = True
        ground.controller.seen(ground.api.change(changed))

    ground.observer.meanwhile.append(suspend)
    ground.controller.seen(manifest())
    await ground.until(lambda: ground.api.writes)
    assert phases(ground.api) == ["Suspended"]
    assert "attempt" not in ground.api.writes[0]["status"]
    assert ground.executor.done == []
    assert ground.observer.outdated[:2] == [True, False]


async def test_plan_is_of_the_time_at_which_its_world_was_seen(ground: Harness) -> None:
    """Storage may be waited for longer than a deadline has left."""
    ground.observer.seen_at = datetime(2031, 2, 3, tzinfo=UTC)
    ground.controller.seen(manifest())
    await ground.until(lambda: ground.api.writes)
    conditions = ground.api.writes[0]["status"]["conditions"]
    assert {c["lastTransitionTime"] for c in conditions} == {"2031-02-03T00:00:00Z"}


async def test_status_of_a_deleted_run_is_not_written_onto_its_namesake(ground: Harness) -> None:
    """The run is deleted and made again while the pass looks, and the deletion's event is lost."""

    def make_again() -> None:
        ground.controller.seen(ground.api.change(manifest(9, OTHER_UID)))

    ground.observer.meanwhile.append(make_again)
    ground.controller.seen(ground.api.change(manifest() | {"status": {"ordinal": 7}}))
    await ground.until(lambda: ground.api.writes)
    first = ground.api.writes[0]
    assert first["metadata"]["uid"] == OTHER_UID
    assert first["status"]["ordinal"] == 1


async def test_run_made_again_while_the_one_before_is_looked_for_is_worked_for(
    ground: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one's write finds nothing; the new one's event comes before the answer that there was none."""

    async def find(*_: Any) -> None:
        ground.controller.seen(ground.api.change(manifest(9, OTHER_UID)))

    ground.api.stored = None
    monkeypatch.setattr(ground.api, "find", find)
    ground.controller.seen(manifest())
    await ground.until(lambda: ground.api.writes)
    assert ground.api.writes[0]["metadata"]["uid"] == OTHER_UID


async def test_conflict_is_planned_again_from_the_newest_object(ground: Harness) -> None:
    """Somebody writes during the pass and no event of it has come: the run is read anew."""

    def label() -> None:
        ground.api.change(manifest(5, labels={"by": "hand"}))

    ground.observer.meanwhile.append(label)
    ground.controller.seen(manifest())
    await ground.until(lambda: ground.api.writes)
    assert ground.api.writes[0]["metadata"]["labels"] == {"by": "hand"}


async def test_what_cannot_be_carried_out_is_said_in_the_status_until_it_can_be(ground: Harness) -> None:
    ground.executor.obstacle = Problem("RayJobForbidden", "exceeded quota: rayjobs")
    ground.controller.seen(manifest())
    await ground.until(lambda: progressing(ground.api) == ("False", "RayJobForbidden"))
    writes = len(ground.api.writes)
    await asyncio.sleep(0.3)
    assert len(ground.api.writes) == writes, "said once, not with every try"
    assert ground.events.count("RayJobForbidden") == 1
    ground.executor.obstacle = None
    ground.controller.wake(KEY)
    await ground.until(lambda: progressing(ground.api) == ("True", "Creating"))


async def test_obstacle_of_a_deleted_run_is_not_its_namesakes(ground: Harness) -> None:
    ground.executor.obstacle = Problem("NameConflict", "RayJob demo-s0-a1 exists")
    ground.controller.seen(manifest())
    await ground.until(lambda: progressing(ground.api) == ("False", "NameConflict"))
    ground.executor.obstacle = None
    ground.controller.seen(ground.api.change(manifest(99, OTHER_UID)))
    await ground.until(lambda: progressing(ground.api) == ("True", "Creating"))
    later = [w for w in ground.api.writes if w["metadata"]["uid"] == OTHER_UID]
    reasons = {c["reason"] for w in later for c in w["status"]["conditions"] if c["type"] == "Progressing"}
    assert "NameConflict" not in reasons


async def test_events_of_a_written_status_are_posted_though_an_action_fails(ground: Harness) -> None:
    made = manifest() | {"status": {"ordinal": 0}}
    made["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    made["spec"]["cleanup"] = {"artifacts": "Delete"}
    made["status"]["provenance"] = {
        "configDigest": "sha256:" + "0" * 64, "image": "i", "model": "m", "seed": 0, "storage": "s3://b/k",
        "operatorVersion": "1",
    }  # fmt: skip
    ground.executor.failure = errors.Unavailable("the API server is away")
    ground.controller.seen(ground.api.change(made))
    await ground.until(lambda: ground.executor.done)
    assert ground.events == ["ArtifactsLeft"]


async def test_deleted_run_whose_spec_cannot_be_read_is_let_go(ground: Harness) -> None:
    made = manifest(deletionTimestamp="2026-01-01T00:00:00Z")
    made["spec"]["newerField"] = 1
    ground.controller.seen(ground.api.change(made))
    await ground.until(lambda: ground.executor.released)
    assert ground.executor.released == [UID]
    assert ground.events == ["ReleasedUnread"]


async def test_listing_finds_runs_that_no_event_told_of_and_forgets_those_that_are_gone(ground: Harness) -> None:
    assert ground.controller.listed([ground.api.change(manifest())], 1) == 1
    await ground.until(lambda: ground.api.writes)
    version = int(ground.api.writes[-1]["metadata"]["resourceVersion"])
    assert ground.controller.listed([ground.api.stored], version) == 0
    assert ground.controller.listed([], version - 1) == 0
    assert KEY in ground.controller._workers, "it was made after that listing"
    assert ground.controller.listed([], version + 10, closed=["ml"]) == 0
    assert KEY in ground.controller._workers, "its namespace is closed to us: nobody has said that it is gone"
    assert ground.controller.listed([], version + 10) == 1
    assert KEY not in ground.controller._workers


async def test_plan_that_asks_for_a_look_at_once_and_changes_nothing_does_not_spin(
    ground: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def again(run: Any, *_: Any) -> Plan:
        looks.append(1)
        return Plan(run.status, requeue_after=0)

    monkeypatch.setattr(reconcile, "plan", again)
    ground.controller.seen(manifest())
    await asyncio.sleep(0.3)
    assert len(looks) == 1


async def test_pool_that_changes_wakes_the_runs_that_it_judges_for_and_no_other(
    ground: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pool_of(name: str, **sandbox: Any) -> dict[str, Any]:
        made = manifest(uid=f"u-{name}", name=name)
        made["spec"]["sandbox"] = sandbox
        return made

    class Still(Observer):
        async def observe(self, run: Any, now: Any, obstacle: Any, outdated: Any) -> World:
            looked.append(run.metadata.name)
            return World(storage=StorageView(problem=Problem("SecretNotFound", "no Secret")), obstacle=obstacle)

    async def accept(obj: dict[str, Any]) -> dict[str, Any]:
        return obj | {"metadata": obj["metadata"] | {"resourceVersion": "2"}}

    looked: list[str] = []
    ground.controller._reconciler.observer = Still()
    monkeypatch.setattr(ground.api, "replace_status", accept)
    for obj in (pool_of("a", poolRef={"name": "shared"}), pool_of("b", poolRef={"name": "other"}),
                pool_of("c", template={"maxReplicas": 2})):  # fmt: skip
        ground.controller.seen(obj)
    await ground.until(lambda: {"a", "b", "c"} <= set(looked))
    looked.clear()
    ground.controller.wake_pool("ml", "shared")
    ground.controller.wake_pool("ml", "c-sandbox")
    ground.controller.wake_pool("elsewhere", "other")
    await ground.until(lambda: {"a", "c"} <= set(looked))
    await asyncio.sleep(0.1)
    assert "b" not in looked


async def test_worker_that_breaks_ends_the_process(ground: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that nobody works for would look as if all were well."""

    def broken(*_: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(ground.controller, "_count", broken)
    ground.controller.seen(manifest())
    with pytest.raises(RuntimeError, match="a defect"):
        async with asyncio.timeout(5):
            await ground.controller.run()


async def test_events_that_come_together_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A RayJob's start is told by some ten events of its cluster and pods within a second."""
    looks: list[int] = []

    def look(run: Any, *_: Any) -> Plan:
        looks.append(1)
        return Plan(run.status)

    monkeypatch.setattr(reconcile, "plan", look)
    settle, loop, passed = 20.0, asyncio.get_running_loop(), [0.0]
    monkeypatch.setattr(loop, "time", lambda: time.monotonic() + passed[0])
    async with standing(settle) as ground:
        ground.controller.seen(manifest())
        await ground.until(lambda: looks)
        for _ in range(8):
            ground.controller.wake(KEY)
            await asyncio.sleep(0.005)
        assert len(looks) == 1
        passed[0] += settle
        await ground.until(lambda: len(looks) > 1)
        passed[0] += settle
        await asyncio.sleep(0.1)
        assert len(looks) == 2
