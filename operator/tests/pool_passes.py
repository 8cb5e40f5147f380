"""Passes over a pool whose API server and clock the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from deepcoder_operator.builders.pool import PoolSettings
from deepcoder_operator.controllers.pool import pool_group
from deepcoder_operator.domain.pool_names import LABEL_POOL
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.informer import Informer
from deepcoder_operator.kube.resources import PODS, Resource
from deepcoder_operator.progress_board import ProgressBoard
from deepcoder_operator.sandbox.capacity import CapacityPoller
from deepcoder_operator.sandbox.judges import Judges
from deepcoder_operator.sandbox.pool_objects import PoolObjects
from deepcoder_operator.sandbox.reconciler import PoolReconciler

SETTINGS = PoolSettings("sandbox:1", "deepcoder", {}, "deepcoder.dev/run")


class API:
    """Takes pods until the quota is used up, lets them go in their own time, keeps of a pool's status what its CRD
    knows, and counts what it is asked."""

    def __init__(self) -> None:
        self.quota = 0
        self.tries = self.lists = self.writes = 0
        self.known: Callable[[dict[str, Any]], dict[str, Any]] = lambda status: status
        """What of a status the CRD knows."""
        self.forbidden = ""
        self.refusal: errors.KubeError = errors.Forbidden("it may not be made", 403)
        self.pods: list[dict[str, Any]] = []
        self.listed: list[dict[str, Any]] = []
        """What was kept of the pods that were listed last."""
        self.contended: dict[str, asyncio.Event] = {}
        """Pods, by their index, whose creation waits for an event; where there are some, all others are conflicts."""
        self.under_way = 0
        self.pool: dict[str, Any] = {}

    async def find(self, resource: Resource, _: Any, name: str) -> dict[str, Any] | None:
        found = self.pods if resource == PODS else []
        return next((p for p in found if p["metadata"]["name"] == name), None)

    async def apply(self, obj: dict[str, Any]) -> dict[str, Any]:
        if obj["kind"] == self.forbidden:
            raise self.refusal
        return obj

    async def list(
        self, *_: Any, keep: Callable[[dict[str, Any]], dict[str, Any]] = lambda obj: obj
    ) -> tuple[list[dict[str, Any]], str]:
        self.lists += 1
        self.listed = [keep(p) for p in self.pods if LABEL_POOL in p["metadata"]["labels"]]
        return self.listed, "1"

    async def create(self, obj: dict[str, Any]) -> dict[str, Any]:
        if obj["kind"] == self.forbidden:
            raise self.refusal
        if obj["kind"] != "Pod":
            return obj
        self.tries += 1
        if self.contended:
            await self._contend(obj["metadata"]["labels"]["deepcoder.dev/pool-index"])
        if any(p["metadata"]["name"] == obj["metadata"]["name"] for p in self.pods):
            raise errors.AlreadyExists("it already exists", 409)
        if len(self.pods) >= self.quota:
            raise errors.Forbidden("exceeded quota: pods", 403)
        meta = obj["metadata"] | {
            "uid": obj["metadata"]["name"], "resourceVersion": "2", "creationTimestamp": "2026-01-01T00:00:00Z"
        }  # fmt: skip
        self.pods.append(obj | {"metadata": meta, "status": {}})
        return self.pods[-1]

    async def _contend(self, index: str) -> None:
        """A quota that many pods are counted against at once has the API server refuse one, as a conflict."""
        if index not in self.contended:
            raise errors.Conflict("Operation cannot be fulfilled on resourcequotas: the object has been modified", 409)
        self.under_way += 1
        try:
            await self.contended[index].wait()
        finally:
            self.under_way -= 1

    async def delete(self, _: Any, __: Any, name: str, *, uid: str) -> bool:
        for pod in self.pods:
            if pod["metadata"]["name"] == name and pod["metadata"]["uid"] == uid:
                pod["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "9"}
        return True

    async def patch(self, _: Any, __: Any, ___: Any, patch: dict[str, Any], ____: Any) -> dict[str, Any]:
        self.writes += 1
        return self.pool | {"status": self.known(patch["status"])}


class Harness:
    """A pool that wants many judges, and a clock that the test moves."""

    def __init__(self) -> None:
        self.api, self.now = API(), 1000.0
        self.events: list[tuple[str, str]] = []
        api: Any = self.api
        self.pods = Informer(api, PODS, "", lambda obj: None, index=pool_group)
        clock: Callable[[], float] = lambda: self.now  # noqa: E731
        self.reconciler = PoolReconciler(
            kube=api,
            judges=Judges(api, self.pods, SETTINGS, CapacityPoller(clock)),
            support=PoolObjects(api, SETTINGS, clock),
            board=ProgressBoard(),
            record=lambda obj, reason, message, *, warning=False: self.events.append((reason, message)),
            clock=clock,
            wall=clock,
        )
        meta = {"name": "judges", "namespace": "ml", "uid": "p", "generation": 1, "resourceVersion": "1"}
        self.pool: dict[str, Any] = {"metadata": meta}
        self.edit(minReplicas=40, maxReplicas=40)

    def edit(self, **spec: Any) -> None:
        """Another spec is another generation."""
        self.pool["spec"] = spec
        self.pool["metadata"] = self.pool["metadata"] | {"generation": self.pool["metadata"]["generation"] + 1}
        self.api.pool = {"metadata": self.pool["metadata"], "spec": spec}

    def change(self, pod: dict[str, Any], status: dict[str, Any], **labels: str) -> None:
        """What the cache sees of a pod."""
        pod["status"] = status
        self._see(pod, pod["metadata"]["labels"] | labels)

    def unlabel(self, pod: dict[str, Any], label: str) -> None:
        """Remove a label of a pod, as `kubectl label pod … label-` does."""
        self._see(pod, {k: v for k, v in pod["metadata"]["labels"].items() if k != label})

    def _see(self, pod: dict[str, Any], labels: dict[str, str]) -> None:
        version = str(int(pod["metadata"]["resourceVersion"]) + 1)
        pod["metadata"] |= {"labels": labels, "resourceVersion": version}
        self.pods.observe(pod)

    def live(self) -> list[dict[str, Any]]:
        """Pods that are not being deleted."""
        return [p for p in self.api.pods if "deletionTimestamp" not in p["metadata"]]

    async def passes(self, seconds: int) -> None:
        """A pass each second."""
        for _ in range(seconds):
            await self.reconciler.reconcile(self.pool)
            self.now += 1

    def said(self, kind: str) -> tuple[str, str]:
        found = next(c for c in self.pool["status"]["conditions"] if c["type"] == kind)
        return found["status"], found["reason"]

    def accepted(self) -> tuple[str, str]:
        return self.said("Accepted")
