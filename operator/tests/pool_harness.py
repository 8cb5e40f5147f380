"""A namespace of the real API server with a kubelet and judges in it, for tests of SandboxPools."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from api_changes import Changes
from kuberay_standin import LOOK_SECONDS
from waits import eventually

from deepcoder_contracts.judge import Capacity, Tier
from deepcoder_contracts.progress import ExpectedSubmissions, ProgressReply, ProgressReport, TrainerPhase
from deepcoder_operator.builders.pool import PoolSettings
from deepcoder_operator.controllers.pool import PoolController
from deepcoder_operator.domain.names import LABEL_RUN
from deepcoder_operator.domain.pool_names import LABEL_POOL, TOKEN_KEY, selector
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.informer import Informer
from deepcoder_operator.kube.resources import (
    PODS,
    POOLS,
    SECRETS,
    SERVICE_ACCOUNTS,
)
from deepcoder_operator.progress_board import Heartbeat, ProgressBoard, RunKey
from deepcoder_operator.sandbox import reconciler as passes
from deepcoder_operator.sandbox.capacity import CapacityPoller
from deepcoder_operator.sandbox.judges import Judges as PodsOfJudges
from deepcoder_operator.sandbox.pool_objects import PoolObjects
from deepcoder_operator.sandbox.reconciler import PoolReconciler

SETTINGS = PoolSettings("sandbox:1", "deepcoder", {"app.kubernetes.io/name": "deepcoder-operator"}, LABEL_RUN)
NAME = "judges"
SLOTS = 2
"""Of each judge."""
PAUSES = {"ACTIVE_SECONDS": 0.2, "IDLE_SECONDS": 1.0}
"""Between passes: a fifth of the deployed ones, since tests wait for little else."""


@dataclass
class Judges:
    """What every judge of the test answers, by its address; only those with the pool's token are answered."""

    load: dict[str, tuple[int, int]] = field(default_factory=dict)
    oldest_wait: float = 0.0
    token: str = ""
    silent: bool = False
    port: int = 0
    _runner: web.AppRunner | None = None

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """Have a judge answer at 127.0.0.1. Its port is free at each other address of loopback, too: no other pool of a
        test has it, since the first judge of each is here."""
        app = web.Application()
        app.router.add_get("/v1/capacity", self.answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        yield
        await self._runner.cleanup()

    async def listen(self, address: str) -> None:
        """Have one more judge answer, at this address."""
        assert self._runner is not None
        await web.TCPSite(self._runner, address, self.port).start()

    async def answer(self, request: web.Request) -> web.Response:
        if self.silent or request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=503 if self.silent else 401)
        assert request.transport is not None
        busy, queued = self.load.get(request.transport.get_extra_info("sockname")[0], (0, 0))
        wait = self.oldest_wait if queued else 0.0
        body = Capacity(slots=SLOTS, busy=busy, queued=queued, oldest_wait_s=wait, tier=Tier.LANDLOCK, limits={})
        return web.Response(body=body.model_dump_json(), content_type="application/json")


@dataclass
class Field:
    """A namespace with a kubelet and judges in it."""

    kube: Kube
    namespace: str
    judges: Judges
    board: ProgressBoard = field(default_factory=ProgressBoard)
    events: list[tuple[str, str]] = field(default_factory=list)
    kubelet_works: bool = True

    async def pods(self) -> list[dict[str, Any]]:
        items, _ = await self.kube.list(PODS, self.namespace, selector(NAME))
        return [p for p in items if not p["metadata"].get("deletionTimestamp")]

    async def pool(self) -> dict[str, Any]:
        return await self.kube.get(POOLS, self.namespace, NAME)

    async def create(self, **spec: Any) -> dict[str, Any]:
        defaults: dict[str, Any] = {"minReplicas": 1, "maxReplicas": 5, "slotsPerPod": SLOTS}
        scaling = {"targetQueuePerSlot": 1, "stabilizationSeconds": 0} | spec.pop("scaling", {})
        body = {
            "apiVersion": "deepcoder.dev/v1alpha1",
            "kind": "SandboxPool",
            "metadata": {"name": NAME, "namespace": self.namespace},
            "spec": {**defaults, "scaling": scaling, **spec},
        }
        return await self.kube.create(body)

    async def condition(self, kind: str) -> dict[str, Any]:
        status = (await self.pool()).get("status") or {}
        return next((c for c in status.get("conditions") or () if c["type"] == kind), {})

    def reconciler(self, pods: Informer) -> PoolReconciler:
        def record(_: Any, reason: str, message: str, *, warning: bool = False) -> None:
            self.events.append((reason, message))

        return PoolReconciler(
            kube=self.kube,
            judges=PodsOfJudges(self.kube, pods, SETTINGS, CapacityPoller(time.monotonic, self.judges.port)),
            support=PoolObjects(self.kube, SETTINGS, time.monotonic),
            board=self.board,
            record=record,
            clock=time.monotonic,
            wall=time.time,
        )

    @asynccontextmanager
    async def controller(self) -> AsyncIterator[PoolController]:
        controller = PoolController(self.kube, self.board, self.reconciler, namespaces=[self.namespace])
        controller.start()
        task = asyncio.create_task(controller.run())
        try:
            yield controller
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def announce(self, count: int) -> RunKey:
        """A run whose trainer has announced programs to the pool."""
        run = RunKey(self.namespace, "demo")
        self.board.post(run, run_uid="u", ordinal=1, reply=ProgressReply(), pool=NAME)
        report = ProgressReport.model_validate(
            {
                "ordinal": 1,
                "stage": "s",
                "phase": TrainerPhase.TRAINING,
                "step": 0,
                "maxSteps": 1,
                "sentAt": "2026-01-01T00:00:00Z",
                "expectedSubmissions": ExpectedSubmissions(count=count, within_seconds=600).model_dump(by_alias=True),
            }
        )
        self.board.receive(run, Heartbeat(report, time.time()))
        return run


async def has_account(kube: Kube, namespace: str) -> bool:
    """Whether pods that name no ServiceAccount are let in: a controller makes theirs after the namespace."""
    return await kube.find(SERVICE_ACCOUNTS, namespace, "default") is not None


async def kubelet(f: Field) -> None:
    """Start pods, and let go of those that are being deleted."""
    changes, number = Changes(f.kube, f.namespace, PODS), 0
    async with asyncio.TaskGroup() as group:
        group.create_task(changes.follow())
        while True:
            seen = changes.count
            with suppress(errors.Unavailable):  # a busy machine's API server is asked again
                items, _ = await f.kube.list(PODS, f.namespace, LABEL_POOL)
                for pod in items:
                    meta, phase = pod["metadata"], pod.get("status", {}).get("phase")
                    if meta.get("deletionTimestamp"):
                        await f.kube.delete(PODS, f.namespace, meta["name"], grace_seconds=0)
                    elif phase == "Pending" and f.kubelet_works:
                        number += 1
                        ready, address = {"type": "Ready", "status": "True"}, f"127.0.1.{number}"
                        await f.judges.listen(address)
                        reached = {"podIP": address, "podIPs": [{"ip": address}]}
                        status = {"phase": "Running", "conditions": [ready]} | reached
                        with suppress(errors.NotFound):
                            await f.kube.patch(PODS, f.namespace, meta["name"], {"status": status}, "status")
            await changes.after(seen, LOOK_SECONDS)


async def read_token(f: Field) -> None:
    """Judges learn the pool's token as soon as it has been made."""
    while True:
        secret = await f.kube.find(SECRETS, f.namespace, f"{NAME}-token")
        if secret is not None:
            f.judges.token = base64.b64decode(secret["data"][TOKEN_KEY]).decode()
            return
        await asyncio.sleep(0.1)


@asynccontextmanager
async def field_in(kube: Kube, namespace: str) -> AsyncIterator[Field]:
    """The namespace, with its kubelet at work and its judges answering."""
    f = Field(kube, namespace, Judges())
    await eventually("the account of the namespace's pods", lambda: has_account(kube, namespace))
    async with f.judges.served():
        tasks = [asyncio.create_task(kubelet(f)), asyncio.create_task(read_token(f))]
        with pytest.MonkeyPatch.context() as patch:
            for name, seconds in PAUSES.items():
                patch.setattr(passes, name, seconds)
            yield f
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [r for r in results if isinstance(r, Exception)]


def settled(n: int, f: Field) -> Callable[[], Awaitable[bool]]:
    """So many judges, all of which have told their load: nothing is left to be written."""

    async def check() -> bool:
        return bool(await ready_count(n, f)() and (await f.pool())["status"]["slots"] == SLOTS * n)

    return check


def ready_count(n: int, f: Field) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        status = (await f.pool()).get("status") or {}
        return bool(status.get("readyReplicas") == n and status.get("replicas") == n)

    return check
