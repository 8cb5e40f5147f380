"""Two lives of a run, told level by level, so that they go on whatever operator there is, and what the world does.

`CrashAndComplete` is a stage whose first attempt crashes and an evaluation; `SuspendAndDelete` is a drain, a
resumption and a deletion with all artifacts. Each says how it must end, whatever became of the operator on the way.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from kuberay_standin import LOOK_SECONDS, dump
from loop_world import Cluster
from run_manifests import EVALUATE, TRAIN
from s3_server import BUCKET

from deepcoder_contracts.stage import StageType
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Object
from deepcoder_operator.kube.resources import (
    CONFIGMAPS,
    NETWORK_POLICIES,
    PODS,
    POOLS,
    RAYJOBS,
    RUNS,
    SERVICE_ACCOUNTS,
    Resource,
)  # fmt: skip

_EVALUATION = EVALUATE | {"evaluate": EVALUATE["evaluate"] | {"targets": ["Base", "short"]}}
_NO_PAUSE = {"backoff": {"initialSeconds": 0}}


class Scenario:
    """A run from its creation to its end."""

    spec: dict[str, Any]
    attempts: tuple[str, ...]

    def __init__(self, site: Cluster) -> None:
        self.site = site
        self.saved: set[str] = set()
        self.done: set[str] = set()
        self.made: dict[str, set[str]] = {}
        self._looked = (-1, 0.0)

    async def begin(self, endpoint: str) -> None:
        """Create the run, and let the world go on beside."""
        await self.site.create_run(s3={"endpoint": endpoint}, **self.spec)
        self.site.tasks.append(asyncio.create_task(self._play()))

    async def ended(self) -> bool:
        """Whether the run is at its end, and nothing of it takes a GPU or a judge any more.

        Asked without end, it looks when something has changed, or after a while.
        """
        count, now = self.site.standin.changes.count, time.monotonic()
        if count == self._looked[0] and now < self._looked[1] + LOOK_SECONDS:
            return False
        self._looked = (count, now)
        return await self._over() and not [kind for kind in (RAYJOBS, POOLS, PODS) if await self._left(kind)]

    async def check(self) -> None:
        """All is as if the operator had lived through it."""
        assert tuple(self.site.standin.seen) == self.attempts
        assert {name: len(uids) for name, uids in self.made.items()} == dict.fromkeys(self.attempts, 1)

    def progress(self) -> str:
        """How far the run has come, for the message of a failed test."""
        run = self.site.standin.changes.find(RUNS, "demo") or {}
        return f"ended: {sorted(self.done)}; its status: {dump(run.get('status') or {})}"

    async def _over(self) -> bool:
        raise NotImplementedError

    async def _left(self, resource: Resource) -> list[str]:
        """The run's objects of a kind."""
        selector = "deepcoder.dev/run-uid" if resource is PODS else ""
        objects, _ = await self.site.kube.list(resource, self.site.namespace, selector)
        return [o["metadata"]["name"] for o in objects if o["metadata"]["name"].startswith("demo")]

    async def _play(self) -> None:
        while True:
            seen = self.site.standin.changes.count
            with suppress(errors.KubeError):
                await self._step()
            await self.site.standin.changes.after(seen, LOOK_SECONDS)

    async def _step(self) -> None:
        for job in self.site.standin.changes.all(RAYJOBS):
            self.made.setdefault(job["metadata"]["name"], set()).add(job["metadata"]["uid"])
        run = self.site.standin.changes.find(RUNS, "demo")
        attempt = ((run or {}).get("status") or {}).get("attempt") or {}
        # Not before the operator has seen it run: each scenario goes through the same steps every time.
        if attempt.get("state") == "Running" and attempt["name"] not in self.done and await self._is_judged():
            await self._running(attempt["name"])

    async def _is_judged(self) -> bool:
        """Whether the pool has said that it has judges. A real head does not run before: it mounts their token."""
        pool = await self.site.kube.find(POOLS, self.site.namespace, "demo-sandbox")
        return bool(((pool or {}).get("status") or {}).get("replicas"))

    async def _running(self, name: str) -> None:
        """An attempt's program runs."""
        raise NotImplementedError

    async def _save(self, name: str, step: int, **options: Any) -> None:
        """Commit, once. What fails for an API server that is away is tried again with the next step."""
        if name not in self.saved:
            await self.site.standin.save(name, step, **options)
            self.saved.add(name)

    async def _leave(self, name: str, code: int, reason: str) -> None:
        """End the program; tried again as a commit is."""
        await self.site.standin.leave(name, code, reason)
        self.done.add(name)


class CrashAndComplete(Scenario):
    """The first attempt crashes, the second completes the stage, the third evaluates."""

    spec = {"stages": [TRAIN, _EVALUATION], "failurePolicy": _NO_PAUSE}
    attempts = ("demo-s0-a1", "demo-s0-a2", "demo-s1-a3")

    async def _running(self, name: str) -> None:
        if name == self.attempts[0]:
            await self._leave(name, 1, "Crashed")
            return
        config = await self.site.standin.config(name)
        metrics = {"eval/held-back/pass_at_1": 0.5} if config.stage.type is StageType.EVALUATE else {}
        await self._save(name, 20, final=True, **metrics)
        await self._leave(name, 0, "Completed")

    async def _over(self) -> bool:
        run = self.site.standin.changes.find(RUNS, "demo") or {"metadata": {}}
        status = run.get("status") or {}
        assert status.get("phase") != "Failed", status
        held = run["metadata"].get("finalizers")  # it is let go by the last write
        return bool(status.get("phase") == "Complete" and not held)

    async def check(self) -> None:
        await super().check()
        status = (await self.site.run())["status"]
        assert [(s["attempts"], s.get("failures", 0)) for s in status["stages"]] == [(2, 1), (1, 0)]
        assert status["stages"][1]["results"] == {"eval/held-back/pass_at_1": "0.5"}
        assert status["latestCheckpoint"]["uri"].endswith("/short/step-000020.a002")


class SuspendAndDelete(Scenario):
    """The run is suspended, drains, is resumed, and is deleted with all that it left."""

    spec = {
        "stages": [TRAIN],
        "failurePolicy": _NO_PAUSE,
        "cleanup": {"artifacts": "Delete"},
        "checkpoint": {"drainSeconds": 20},
    }
    attempts = ("demo-s0-a1", "demo-s0-a2")

    def __init__(self, site: Cluster) -> None:
        super().__init__(site)
        self.suspended: Object | None = None

    async def _step(self) -> None:
        await super()._step()
        run = self.site.standin.changes.find(RUNS, "demo")
        status = (run or {}).get("status") or {}
        attempt = status.get("attempt") or {}
        name, state = attempt.get("name"), attempt.get("state")
        if run is None or run["metadata"].get("deletionTimestamp"):
            pass
        elif status.get("phase") == "Suspended":
            self.suspended = status
            await self._ask(suspend=False)
        elif state == "Running" and await self._is_judged():
            if name == self.attempts[0]:
                await self._ask(suspend=True)
            elif name == self.attempts[1]:
                await self.site.kube.delete(RUNS, self.site.namespace, "demo")
        if state == "Draining" and name and name not in self.done:
            await self._save(name, 6 if name == self.attempts[0] else 9)
            await self._leave(name, 75, "Drained")

    async def _ask(self, suspend: bool) -> None:
        await self.site.kube.patch(RUNS, self.site.namespace, "demo", {"spec": {"suspend": suspend}})

    async def _running(self, name: str) -> None:
        """It trains until it is asked to stop."""

    async def _over(self) -> bool:
        kinds = (NETWORK_POLICIES, SERVICE_ACCOUNTS, CONFIGMAPS)
        told = self.site.standin.changes.find(RUNS, "demo") is None  # or has not been told of yet
        return told and await self.site.gone() and not [kind for kind in kinds if await self._left(kind)]

    async def check(self) -> None:
        await super().check()
        assert self.suspended is not None
        assert self.suspended["latestCheckpoint"]["step"] == 6, "what was saved while draining"
        assert self.suspended["stages"][0].get("failures", 0) == 0
        client: Any = self.site.s3.client()
        left = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{self.site.namespace}/")
        assert [o["Key"] for o in left.get("Contents", [])] == []
