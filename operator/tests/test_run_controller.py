"""The run controller against an API server of a few lines that checks versions: what a pass writes, and onto what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
from plan_world import UID
from run_manifests import run_manifest

from deepcoder_contracts.progress import ProgressReport, TrainerPhase
from deepcoder_operator.api.run import FINALIZER
from deepcoder_operator.board import ProgressBoard, RunKey
from deepcoder_operator.clock import SteadyClock
from deepcoder_operator.controllers import reconcile
from deepcoder_operator.controllers.run import RunController
from deepcoder_operator.domain.draft import Plan
from deepcoder_operator.domain.policy import Policy
from deepcoder_operator.domain.world import (
    Beat,
    ClusterView,
    PodView,
    PoolView,
    Problem,
    RayJobView,
    StorageView,
    World,
)
from deepcoder_operator.kube import errors

KEY = RunKey("ml", "demo")
OTHER_UID = UID.replace("0", "9")


def manifest(version: int = 1, uid: str = UID, **metadata: Any) -> dict[str, Any]:
    made = run_manifest("ml")
    made["metadata"] |= {"uid": uid, "generation": 1, "resourceVersion": str(version), "finalizers": [FINALIZER]}
    made["metadata"] |= metadata
    return made


@dataclass
class API:
    """One run, as the API server keeps it: a put under another version or uid is a conflict."""

    stored: dict[str, Any] | None
    writes: list[dict[str, Any]] = field(default_factory=list)

    def change(self, obj: dict[str, Any]) -> dict[str, Any]:
        """Somebody else writes."""
        self.stored = deepcopy(obj)
        return deepcopy(obj)

    async def find(self, *_: Any) -> dict[str, Any] | None:
        return deepcopy(self.stored)

    async def replace_status(self, obj: dict[str, Any]) -> dict[str, Any]:
        if self.stored is None:
            raise errors.NotFound("no such run", 404)
        for name in ("uid", "resourceVersion"):
            if obj["metadata"][name] != self.stored["metadata"][name]:
                raise errors.Conflict(f"another {name}", 409)
        version = int(self.stored["metadata"]["resourceVersion"]) + 1
        metadata = self.stored["metadata"] | {"resourceVersion": str(version)}
        self.stored = self.stored | {"metadata": metadata, "status": deepcopy(obj["status"])}
        self.writes.append(deepcopy(self.stored))
        return deepcopy(self.stored)


@dataclass
class Observer:
    """Sees an accepted run without children; `meanwhile` happens while it looks."""

    meanwhile: list[Callable[[], None]] = field(default_factory=list)

    async def observe(self, run: Any, now: Any, obstacle: Any) -> World:
        await asyncio.sleep(0)
        if self.meanwhile:
            self.meanwhile.pop(0)()
        return World(storage=StorageView(), obstacle=obstacle)


@dataclass
class Executor:
    """Notes what it was asked to do; it cannot while there is an obstacle, and breaks on a failure."""

    done: list[Any] = field(default_factory=list)
    obstacle: Problem | None = None
    failure: Exception | None = None
    released: list[str] = field(default_factory=list)

    async def carry_out(self, run: Any, actions: Any) -> Problem | None:
        self.done += actions
        if actions and self.failure:
            raise self.failure
        return self.obstacle if actions else None

    async def release(self, metadata: Any) -> None:
        self.released.append(metadata.uid)


@dataclass
class Ground:
    api: API
    observer: Observer = field(default_factory=Observer)
    executor: Executor = field(default_factory=Executor)
    board: ProgressBoard = field(default_factory=ProgressBoard)
    events: list[str] = field(default_factory=list)
    controller: Any = None

    def record(self, obj: Any, reason: str, message: str, *, warning: bool = False) -> None:
        self.events.append(reason)

    async def until(self, holds: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0.01)


@pytest.fixture
async def ground() -> AsyncIterator[Ground]:
    made = Ground(API(manifest()))
    api: Any = made.api
    observer: Any = made.observer
    executor: Any = made.executor
    made.controller = RunController(api, observer, executor, made.board, Policy(), made.record, SteadyClock().now)
    made.controller.start()
    yield made
    await made.controller.stop()


def phases(api: API) -> list[str]:
    return [w["status"]["phase"] for w in api.writes]


async def test_change_during_a_pass_makes_it_plan_again_instead_of_writing_an_old_plan(ground: Ground) -> None:
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


async def test_status_of_a_deleted_run_is_not_written_onto_its_namesake(ground: Ground) -> None:
    """The run is deleted and made again while the pass looks, and the deletion's event is lost."""

    def make_again() -> None:
        ground.controller.seen(ground.api.change(manifest(9, OTHER_UID)))

    ground.observer.meanwhile.append(make_again)
    ground.controller.seen(ground.api.change(manifest() | {"status": {"ordinal": 7}}))
    await ground.until(lambda: ground.api.writes)
    first = ground.api.writes[0]
    assert first["metadata"]["uid"] == OTHER_UID
    assert first["status"]["ordinal"] == 1


async def test_conflict_is_planned_again_from_the_newest_object(ground: Ground) -> None:
    """Somebody writes during the pass and no event of it has come: the run is read anew."""

    def label() -> None:
        ground.api.change(manifest(5, labels={"by": "hand"}))

    ground.observer.meanwhile.append(label)
    ground.controller.seen(manifest())
    await ground.until(lambda: ground.api.writes)
    assert ground.api.writes[0]["metadata"]["labels"] == {"by": "hand"}


def progressing(api: API) -> tuple[str, str]:
    conditions = (api.stored or {}).get("status", {}).get("conditions", [])
    found = next((c for c in conditions if c["type"] == "Progressing"), {})
    return found.get("status", ""), found.get("reason", "")


async def test_what_cannot_be_carried_out_is_said_in_the_status_until_it_can_be(ground: Ground) -> None:
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


async def test_obstacle_of_a_deleted_run_is_not_its_namesakes(ground: Ground) -> None:
    ground.executor.obstacle = Problem("NameConflict", "RayJob demo-s0-a1 exists")
    ground.controller.seen(manifest())
    await ground.until(lambda: progressing(ground.api) == ("False", "NameConflict"))
    ground.executor.obstacle = None
    ground.controller.seen(ground.api.change(manifest(99, OTHER_UID)))
    await ground.until(lambda: progressing(ground.api) == ("True", "Creating"))
    later = [w for w in ground.api.writes if w["metadata"]["uid"] == OTHER_UID]
    reasons = {c["reason"] for w in later for c in w["status"]["conditions"] if c["type"] == "Progressing"}
    assert "NameConflict" not in reasons


async def test_events_of_a_written_status_are_posted_though_an_action_fails(ground: Ground) -> None:
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


async def test_deleted_run_whose_spec_cannot_be_read_is_let_go(ground: Ground) -> None:
    made = manifest(deletionTimestamp="2026-01-01T00:00:00Z")
    made["spec"]["newerField"] = 1
    ground.controller.seen(ground.api.change(made))
    await ground.until(lambda: ground.executor.released)
    assert ground.executor.released == [UID]
    assert ground.events == ["ReleasedUnread"]


async def test_listing_finds_runs_that_no_event_told_of_and_forgets_those_that_are_gone(ground: Ground) -> None:
    assert ground.controller.listed([ground.api.change(manifest())], 1) == 1
    await ground.until(lambda: ground.api.writes)
    version = int(ground.api.writes[-1]["metadata"]["resourceVersion"])
    assert ground.controller.listed([ground.api.stored], version) == 0
    assert ground.controller.listed([], version - 1) == 0
    assert KEY in ground.controller._workers, "it was made after that listing"
    assert ground.controller.listed([], version + 10) == 1
    assert KEY not in ground.controller._workers


class Beats(Observer):
    """An attempt that runs, and reports a step more at every look."""

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.phase = TrainerPhase.TRAINING

    async def observe(self, run: Any, now: Any, obstacle: Any) -> World:
        self.step += 1
        name = "demo-s0-a1"
        job = RayJobView(name, "job", UID, 1, job_status="RUNNING", deployment_status="Running", cluster_name="c")
        head = PodView(f"{name}-head", "head", "head", 1, phase="Running", ready=True)
        report = ProgressReport(
            ordinal=1, stage="short", phase=self.phase, step=self.step, max_steps=20, sent_at=now
        )  # fmt: skip
        pool = PoolView("demo-sandbox", True, f"{self.step} of 4 judges are ready")
        return World(rayjob=job, cluster=ClusterView("c", True), pods=(head,), pool=pool, storage=StorageView(),
                     beat=Beat(report, now, "head", now), watching_since=now)  # fmt: skip


def intended() -> dict[str, Any]:
    """A run whose first attempt was intended."""
    made = manifest()
    attempt = {"ordinal": 1, "stageIndex": 0, "name": "demo-s0-a1", "intendedTime": "2026-01-01T00:00:00Z"}
    provenance = {"configDigest": "sha256:" + "0" * 64, "image": "i", "model": "m", "seed": 0, "storage": "s3://b/k",
                  "operatorVersion": "1"}  # fmt: skip
    return made | {"status": {"ordinal": 1, "attempt": attempt, "provenance": provenance}}


async def test_figures_alone_are_not_written_with_every_look(ground: Ground) -> None:
    """Of twenty looks at a run that reports a step each time, the statuses of the first few passes are written."""
    ground.controller._reconciler._observer = Beats()
    ground.controller.seen(ground.api.change(intended()))
    await ground.until(lambda: "Running" in phases(ground.api))
    await asyncio.sleep(0.1)
    settled = len(ground.api.writes)
    for _ in range(20):
        ground.controller.wake(KEY)
        await asyncio.sleep(0.01)
    assert len(ground.api.writes) == settled
    assert ground.controller._reconciler._observer.step > 15


async def test_what_was_held_back_is_written_once_it_is_due(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    observer = Beats()
    ground.controller._reconciler._observer = observer
    monkeypatch.setattr(ground.controller._reconciler, "_clock", lambda: now[0])
    ground.controller.seen(ground.api.change(intended()))
    await ground.until(lambda: "Running" in phases(ground.api))
    await asyncio.sleep(0.1)
    settled = len(ground.api.writes)
    now[0] = 16.0
    ground.controller.wake(KEY)
    await ground.until(lambda: len(ground.api.writes) > settled)
    conditions = {c["type"]: c for c in ground.api.writes[-1]["status"]["conditions"]}
    assert conditions["SandboxReady"]["status"] == "True"


async def test_plan_that_asks_for_a_look_at_once_and_changes_nothing_does_not_spin(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
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
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pool_of(name: str, **sandbox: Any) -> dict[str, Any]:
        made = manifest(uid=f"u-{name}", name=name)
        made["spec"]["sandbox"] = sandbox
        return made

    class Still(Observer):
        async def observe(self, run: Any, now: Any, obstacle: Any) -> World:
            looked.append(run.metadata.name)
            return World(storage=StorageView(problem=Problem("SecretNotFound", "no Secret")), obstacle=obstacle)

    async def accept(obj: dict[str, Any]) -> dict[str, Any]:
        return obj | {"metadata": obj["metadata"] | {"resourceVersion": "2"}}

    looked: list[str] = []
    ground.controller._reconciler._observer = Still()
    monkeypatch.setattr(ground.api, "replace_status", accept)
    for obj in (pool_of("a", poolRef={"name": "shared"}), pool_of("b", poolRef={"name": "other"}),
                pool_of("c", template={"maxReplicas": 2})):  # fmt: skip
        ground.controller.seen(obj)
    await ground.until(lambda: {"a", "b", "c"} <= set(looked))
    looked.clear()
    ground.controller.wake_pool("ml", "shared")
    ground.controller.wake_pool("ml", "c-sandbox")
    ground.controller.wake_pool("elsewhere", "other")
    await asyncio.sleep(0.1)
    assert "b" not in looked
    assert {"a", "c"} <= set(looked)


async def test_worker_that_breaks_ends_the_process(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that nobody works for would look as if all were well."""

    def broken(*_: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(ground.controller, "_count", broken)
    ground.controller.seen(manifest())
    with pytest.raises(RuntimeError, match="a defect"):
        async with asyncio.timeout(5):
            await ground.controller.run()
