"""A run controller over an API server of a few lines that checks versions, for tests of what passes do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import waits
from plan_world import UID
from run_manifests import run_manifest

from deepcoder_contracts.api.run import FINALIZER
from deepcoder_operator.clock import SteadyClock
from deepcoder_operator.controllers.reconcile import Reconciler
from deepcoder_operator.controllers.run import RunController
from deepcoder_operator.domain.policy import Policy
from deepcoder_operator.domain.world import Problem, StorageView, World
from deepcoder_operator.kube import errors
from deepcoder_operator.progress_board import ProgressBoard, RunKey

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

    async def patch(self, resource: Any, namespace: str, name: str, patch: Any, subresource: str) -> dict[str, Any]:
        """A merge patch of the status."""
        assert self.stored is not None
        assert subresource == "status"
        status = self.stored.get("status", {}) | patch["status"]
        return await self.replace_status(self.stored | {"metadata": self.stored["metadata"] | patch["metadata"],
                                                        "status": status})  # fmt: skip

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
    seen_at: datetime | None = None
    outdated: list[bool] = field(default_factory=list)
    """What was said of each run after `meanwhile`."""

    async def observe(self, run: Any, now: Any, obstacle: Any, outdated: Any) -> World:
        await asyncio.sleep(0)
        if self.meanwhile:
            self.meanwhile.pop(0)()
        self.outdated.append(outdated())
        return World(storage=StorageView(), obstacle=obstacle, seen_at=self.seen_at)


@dataclass
class Executor:
    """Notes what it was asked to do; it cannot while there is an obstacle, and breaks on a failure."""

    done: list[Any] = field(default_factory=list)
    obstacle: Problem | None = None
    failure: Exception | None = None
    released: list[str] = field(default_factory=list)

    async def carry_out(self, run: Any, actions: Any, adopt: Any) -> Problem | None:
        self.done += actions
        if actions and self.failure:
            raise self.failure
        return self.obstacle if actions else None

    async def release(self, metadata: Any) -> None:
        self.released.append(metadata.uid)


@dataclass
class Harness:
    api: API
    observer: Observer = field(default_factory=Observer)
    executor: Executor = field(default_factory=Executor)
    board: ProgressBoard = field(default_factory=ProgressBoard)
    events: list[str] = field(default_factory=list)
    controller: Any = None

    def record(self, obj: Any, reason: str, message: str, *, warning: bool = False) -> None:
        self.events.append(reason)

    until = staticmethod(waits.until)


@asynccontextmanager
async def running_controller(settle: float = 0.0) -> AsyncIterator[Harness]:
    """A controller that has begun, of a run that is not seen yet."""
    made = Harness(API(manifest()))
    api: Any = made.api
    observer: Any = made.observer
    executor: Any = made.executor
    reconciler = Reconciler(
        kube=api,
        observer=observer,
        executor=executor,
        board=made.board,
        policy=Policy(),
        record=made.record,
        now=SteadyClock().now,
    )
    made.controller = RunController(api, reconciler, made.board, settle)
    made.controller.start()
    yield made
    await made.controller.stop()


def phases(api: API) -> list[str]:
    return [w["status"]["phase"] for w in api.writes]


def progressing(api: API) -> tuple[str, str]:
    conditions = (api.stored or {}).get("status", {}).get("conditions", [])
    found = next((c for c in conditions if c["type"] == "Progressing"), {})
    return found.get("status", ""), found.get("reason", "")
