"""The run controller: from what a pass plans, onto what it writes, and what wakes the next."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from plan_world import UID, running
from run_harness import API, KEY, OTHER_UID, Harness, Observer, manifest, phases, progressing, running_controller

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from virtual_clock import run_virtually

from deepcoder_operator.controllers import reconcile
from deepcoder_operator.controllers.pool import PoolController
from deepcoder_operator.controllers.reconcile import Memory, Obstacle, version
from deepcoder_operator.controllers.run import RunController
from deepcoder_operator.domain.draft import CreateAttempt, Plan
from deepcoder_operator.domain.world import Problem, World
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.resources import POOLS
from deepcoder_operator.progress_board import ProgressBoard


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    async with running_controller() as made:
        yield made


async def test_attempt_is_made_without_a_write_more_than_that_of_its_intent(harness: Harness) -> None:
    harness.controller.seen(manifest())
    await harness.until(lambda: any(isinstance(a, CreateAttempt) for a in harness.executor.done))
    assert [w["status"]["attempt"]["state"] for w in harness.api.writes] == ["Intended"]
    assert progressing(harness.api) == ("True", "Creating")


async def test_change_during_a_pass_makes_it_plan_again_instead_of_writing_an_old_plan(harness: Harness) -> None:
    """The run is suspended while the pass looks at storage: no attempt may be intended on the older view."""

    def suspend() -> None:
        changed = manifest(2, generation=2)
        changed["spec"]["suspend"] = True
        harness.controller.seen(harness.api.change(changed))

    harness.observer.meanwhile.append(suspend)
    harness.controller.seen(manifest())
    await harness.until(lambda: harness.api.writes)
    assert phases(harness.api) == ["Suspended"]
    assert "attempt" not in harness.api.writes[0]["status"]
    assert harness.executor.done == []
    assert harness.observer.outdated[:2] == [True, False]


async def test_plan_is_of_the_time_at_which_its_world_was_seen(harness: Harness) -> None:
    """Storage may be waited for longer than a deadline has left."""
    harness.observer.seen_at = datetime(2031, 2, 3, tzinfo=UTC)
    harness.controller.seen(manifest())
    await harness.until(lambda: harness.api.writes)
    conditions = harness.api.writes[0]["status"]["conditions"]
    assert {c["lastTransitionTime"] for c in conditions} == {"2031-02-03T00:00:00Z"}


async def test_status_of_a_deleted_run_is_not_written_onto_its_namesake(harness: Harness) -> None:
    """The run is deleted and made again while the pass looks, and the deletion's event is lost."""

    def make_again() -> None:
        harness.controller.seen(harness.api.change(manifest(9, OTHER_UID)))

    harness.observer.meanwhile.append(make_again)
    harness.controller.seen(harness.api.change(manifest() | {"status": {"ordinal": 7}}))
    await harness.until(lambda: harness.api.writes)
    first = harness.api.writes[0]
    assert first["metadata"]["uid"] == OTHER_UID
    assert first["status"]["ordinal"] == 1


async def test_run_made_again_while_the_one_before_is_looked_for_is_worked_for(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one's write finds nothing; the new one's event comes before the answer that there was none."""

    async def find(*_: Any) -> None:
        harness.controller.seen(harness.api.change(manifest(9, OTHER_UID)))

    harness.api.stored = None
    monkeypatch.setattr(harness.api, "find", find)
    harness.controller.seen(manifest())
    await harness.until(lambda: harness.api.writes)
    assert harness.api.writes[0]["metadata"]["uid"] == OTHER_UID


async def test_conflict_is_planned_again_from_the_newest_object(harness: Harness) -> None:
    """Somebody writes during the pass and no event of it has come: the run is read anew."""

    def label() -> None:
        harness.api.change(manifest(5, labels={"by": "hand"}))

    harness.observer.meanwhile.append(label)
    harness.controller.seen(manifest())
    await harness.until(lambda: harness.api.writes)
    assert harness.api.writes[0]["metadata"]["labels"] == {"by": "hand"}


async def test_what_cannot_be_carried_out_is_said_in_the_status_until_it_can_be(harness: Harness) -> None:
    harness.executor.obstacle = Problem("RayJobForbidden", "exceeded quota: rayjobs")
    harness.controller.seen(manifest())
    await harness.until(lambda: progressing(harness.api) == ("False", "RayJobForbidden"))
    writes = len(harness.api.writes)
    await asyncio.sleep(0.3)
    assert len(harness.api.writes) == writes, "said once, not with every try"
    assert harness.events.count("RayJobForbidden") == 1
    harness.executor.obstacle = None
    harness.controller.wake(KEY)
    await harness.until(lambda: progressing(harness.api) == ("True", "Creating"))


async def test_obstacle_of_a_deleted_run_is_not_its_namesakes(harness: Harness) -> None:
    harness.executor.obstacle = Problem("NameConflict", "RayJob demo-s0-a1 exists")
    harness.controller.seen(manifest())
    await harness.until(lambda: progressing(harness.api) == ("False", "NameConflict"))
    harness.executor.obstacle = None
    harness.controller.seen(harness.api.change(manifest(99, OTHER_UID)))
    await harness.until(lambda: progressing(harness.api) == ("True", "Creating"))
    later = [w for w in harness.api.writes if w["metadata"]["uid"] == OTHER_UID]
    reasons = {c["reason"] for w in later for c in w["status"]["conditions"] if c["type"] == "Progressing"}
    assert "NameConflict" not in reasons


async def test_events_of_a_written_status_are_posted_though_an_action_fails(harness: Harness) -> None:
    made = manifest() | {"status": {"ordinal": 0}}
    made["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    made["spec"]["cleanup"] = {"artifacts": "Delete"}
    made["status"]["provenance"] = {
        "configDigest": "sha256:" + "0" * 64, "image": "i", "model": "m", "seed": 0, "storage": "s3://b/k",
        "operatorVersion": "1",
    }  # fmt: skip
    harness.executor.failure = errors.Unavailable("the API server is away")
    harness.controller.seen(harness.api.change(made))
    await harness.until(lambda: harness.executor.done)
    assert harness.events == ["ArtifactsLeft"]


async def test_deleted_run_whose_spec_cannot_be_read_is_let_go(harness: Harness) -> None:
    made = manifest(deletionTimestamp="2026-01-01T00:00:00Z")
    made["spec"]["newerField"] = 1
    harness.controller.seen(harness.api.change(made))
    await harness.until(lambda: harness.executor.released)
    assert harness.executor.released == [UID]
    assert harness.events == ["ReleasedUnread"]


async def test_listing_finds_runs_that_no_event_told_of_and_forgets_those_that_are_gone(harness: Harness) -> None:
    assert harness.controller.listed([harness.api.change(manifest())], 1) == 1
    await harness.until(lambda: harness.api.writes)
    version = int(harness.api.writes[-1]["metadata"]["resourceVersion"])
    assert harness.controller.listed([harness.api.stored], version) == 0
    assert harness.controller.listed([], version - 1) == 0
    assert KEY in harness.controller._workers, "it was made after that listing"
    assert harness.controller.listed([], version + 10, closed=["ml"]) == 0
    assert KEY in harness.controller._workers, "its namespace is closed to us: nobody has said that it is gone"
    assert harness.controller.listed([], version + 10) == 1
    assert KEY not in harness.controller._workers


async def test_plan_that_asks_for_a_look_at_once_and_changes_nothing_does_not_spin(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def again(run: Any, *_: Any) -> Plan:
        looks.append(1)
        return Plan(run.status, requeue_after=0)

    monkeypatch.setattr(reconcile, "plan", again)
    harness.controller.seen(manifest())
    await asyncio.sleep(0.3)
    assert len(looks) == 1


async def test_pool_that_changes_wakes_the_runs_that_it_judges_for_and_no_other(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pool_of(name: str, **sandbox: Any) -> dict[str, Any]:
        made = manifest(uid=f"u-{name}", name=name)
        made["spec"]["sandbox"] = sandbox
        return made

    class Still(Observer):
        async def observe(self, run: Any, now: Any, obstacle: Any, outdated: Any) -> World:
            looked.append(run.metadata.name)
            return World()

    looked: list[str] = []
    live = pool_of("d", poolRef={"name": "other"})
    attempt = {"ordinal": 1, "stageIndex": 0, "name": "d-s0-a1", "intendedTime": "2026-01-01T00:00:00Z"}
    live["status"] = {"ordinal": 1, "attempt": attempt | {"pool": "shared"}}
    harness.controller._reconciler.observer = Still()
    monkeypatch.setattr(reconcile, "plan", lambda run, *_: Plan(run.status, requeue_after=60))
    for obj in (pool_of("a", poolRef={"name": "shared"}), pool_of("b", poolRef={"name": "other"}),
                pool_of("c", template={"maxReplicas": 2}), live):  # fmt: skip
        harness.controller.seen(obj)
    await harness.until(lambda: {"a", "b", "c", "d"} <= set(looked))
    looked.clear()
    harness.controller.wake_pool("ml", "shared")
    harness.controller.wake_pool("ml", "c-sandbox")
    harness.controller.wake_pool("elsewhere", "other")
    await harness.until(lambda: {"a", "c", "d"} <= set(looked))
    await asyncio.sleep(0.1)
    assert "b" not in looked


async def test_worker_that_breaks_ends_the_process(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that nobody works for would look as if all were well."""

    def broken(*_: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(harness.controller, "_count", broken)
    harness.controller.seen(manifest())
    with pytest.raises(RuntimeError, match="a defect"):
        async with asyncio.timeout(60):
            await harness.controller.run()


async def test_events_that_come_together_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A RayJob's start is told by some ten events of its cluster and pods within a second."""
    looks: list[int] = []

    def look(run: Any, *_: Any) -> Plan:
        looks.append(1)
        return Plan(run.status)

    monkeypatch.setattr(reconcile, "plan", look)
    settle, loop, passed = 20.0, asyncio.get_running_loop(), [0.0]
    monkeypatch.setattr(loop, "time", lambda: time.monotonic() + passed[0])
    async with running_controller(settle) as harness:
        harness.controller.seen(manifest())
        await harness.until(lambda: looks)
        for _ in range(8):
            harness.controller.wake(KEY)
            await asyncio.sleep(0.005)
        assert len(looks) == 1
        passed[0] += settle
        await harness.until(lambda: len(looks) > 1)
        passed[0] += settle
        await asyncio.sleep(0.1)
        assert len(looks) == 2


@pytest.mark.parametrize("kind", ["run", "pool"])
def test_pauses_after_conflicts_in_a_row_grow_and_are_short_again_after_a_pass(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Who answers each write with a conflict would be asked many times a second, and nobody told. In virtual time."""
    at: list[float] = []

    class Reconciler:
        async def reconcile(self, *_: Any) -> float:
            at.append(asyncio.get_running_loop().time())
            if len(at) == 9:
                return 1.0
            raise errors.Conflict("the object has been modified", 409)

        async def close(self) -> None:
            return None

    class Kube(API):
        async def list(self, resource: Any, *_: Any, **__: Any) -> tuple[list[dict[str, Any]], str]:
            return [manifest()] if resource is POOLS else [], "1"

        async def watch(self, *_: Any) -> AsyncIterator[Any]:
            await asyncio.Event().wait()
            yield

    async def met() -> None:
        kube: Any = Kube(manifest())
        reconciler: Any = Reconciler()
        if kind == "run":
            runs = RunController(kube, reconciler, ProgressBoard(), 0.0)
            runs.start()
            runs.seen(manifest())
            while len(at) < 11:
                await asyncio.sleep(1)
            await runs.stop()
            return
        pools = PoolController(kube, ProgressBoard(), lambda _: reconciler)
        pools.start()
        task = asyncio.create_task(pools.run())
        while len(at) < 11:
            await asyncio.sleep(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run_virtually(met())
    first = {"run": 0.2, "pool": 0.1}[kind]
    pauses = [round(later - before, 3) for before, later in pairwise(at)]
    assert pauses[:8] == [min(round(first * 2**n, 3), 5.0) for n in range(8)]
    assert pauses[8:10] == [1.0, first]
    warned = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert warned
    assert len(warned) <= 4
    assert "the object has been modified" in warned[0]


def test_what_is_refused_is_tried_again_after_growing_bounded_pauses() -> None:
    refused = Problem("RayJobForbidden", "exceeded quota")
    assert [Obstacle("uid", refused, tries).pause for tries in (1, 2, 3, 6, 7, 1000)] == [1, 2, 4, 32, 60, 60]


def test_event_that_is_older_than_what_is_known_changes_nothing() -> None:
    """A watch may be behind the answer to our own write, and a plan from before it would only meet a conflict."""
    memory = Memory(manifest(7))
    memory.adopt(manifest(6))
    assert version(memory.obj) == 7
    memory.adopt(manifest(8))
    assert version(memory.obj) == 8


async def test_only_the_head_that_was_seen_may_report_and_its_silence_counts_from_then(harness: Harness) -> None:
    cluster = running()
    attempt, reconciler = cluster.run.status.attempt, harness.controller._reconciler
    assert attempt is not None
    assert attempt.head_uid
    reconciler._answer(KEY, cluster.run, cluster.now)
    entry = reconciler.board.entries[KEY]
    assert (entry.head_uid, entry.posted_at) == (attempt.head_uid, cluster.now.timestamp())
