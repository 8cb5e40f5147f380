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

from deepcoder_operator.api.run import FINALIZER
from deepcoder_operator.board import ProgressBoard, RunKey
from deepcoder_operator.controllers.run import RunController
from deepcoder_operator.domain.policy import Policy
from deepcoder_operator.domain.world import StorageView, World
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
    refusals: dict[str, Any] = field(default_factory=dict)

    async def observe(self, run: Any, now: Any) -> World:
        await asyncio.sleep(0)
        if self.meanwhile:
            self.meanwhile.pop(0)()
        return World(storage=StorageView())


@dataclass
class Executor:
    """Notes what it was asked to do."""

    done: list[tuple[str, Any]] = field(default_factory=list)

    async def carry_out(self, run: Any, action: Any) -> None:
        self.done.append((run.metadata.uid, action))


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
    made.controller = RunController(api, observer, executor, made.board, Policy(), made.record)
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
