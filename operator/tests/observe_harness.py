"""An API server, caches and a bucket that have what a test puts there, and count what they are asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import plan_world
from plan_world import START, Cluster

from deepcoder_contracts.api.run import FINALIZER, DeepCoderRun
from deepcoder_operator.controllers.observe import Children, Observer
from deepcoder_operator.domain.world import Problem, StorageView, StoredStage, World
from deepcoder_operator.kube import errors
from deepcoder_operator.progress_board import ProgressBoard
from deepcoder_operator.storage.s3 import Credentials


@dataclass
class API:
    """Has little, and counts what is looked for."""

    asked: Counter[str] = field(default_factory=Counter)
    objects: dict[str, Any] = field(default_factory=dict)
    kinds: dict[tuple[str, str], Any] = field(default_factory=dict)
    """Objects that share a name with one of another kind."""
    events: list[dict[str, Any]] | None = field(default_factory=list)
    """None: they may not be listed."""

    async def list(self, resource: Any, namespace: str, *, field_selector: str) -> tuple[list[dict[str, Any]], str]:
        self.asked[resource.kind] += 1
        if self.events is None:
            raise errors.Forbidden("events", 403)
        return self.events, "1"

    async def find(self, resource: Any, namespace: str, name: str) -> Any:
        self.asked[resource.kind] += 1
        return self.kinds.get((resource.kind, name)) or self.objects.get(name)


@dataclass
class Cache:
    """What a watch has told so far."""

    objects: list[Any] = field(default_factory=list)

    def get(self, namespace: str, name: str) -> None:
        return None

    def group(self, key: str) -> list[Any]:
        return list(self.objects)

    def observe(self, obj: Any) -> None:
        self.objects = [obj if o["metadata"]["name"] == obj["metadata"]["name"] else o for o in self.objects]


@dataclass
class Storage:
    problem: Problem | None = None
    stage: StoredStage = field(default_factory=StoredStage)
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    """Not set: it does not answer."""
    meanwhile: Callable[[], None] = lambda: None
    """Happens while it is asked."""
    asked: int = 0
    given_up: int = 0

    @asynccontextmanager
    async def aside(self) -> AsyncIterator[None]:
        yield

    async def credentials(self, *_: Any) -> Credentials:
        return Credentials("AKIDEXAMPLE", "the-secret-of-s3")

    async def answer(self, *_: Any) -> StorageView:
        self.asked += 1
        self.meanwhile()
        try:
            await self.answers.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return StorageView(problem=self.problem, stage=None if self.problem else self.stage)


class Harness:
    def __init__(self) -> None:
        self.api, self.storage, self.now = API(), Storage(), START
        self.storage.answers.set()
        api: Any = self.api
        storage: Any = self.storage
        self.jobs, self.pods, self.others = Cache(), Cache(), Cache()
        jobs: Any = self.jobs
        pods: Any = self.pods
        others: Any = self.others
        self.observer = Observer(api, Children(jobs, others, pods, others), ProgressBoard(), storage)

    async def look(self, run: DeepCoderRun, *, outdated: bool = False) -> World:
        self.api.asked.clear()
        return await self.observer.observe(run, lambda: self.now, None, lambda: outdated)


def make_run(**spec: Any) -> DeepCoderRun:
    """A run that has its finalizer."""
    run = plan_world.make_run(**spec)
    return run.model_copy(update={"metadata": run.metadata.model_copy(update={"finalizers": [FINALIZER]})})


def job_object(cluster: Cluster, **spec: Any) -> dict[str, Any]:
    """The live attempt's RayJob, as the API server has it."""
    attempt = cluster.run.status.attempt
    assert attempt is not None
    uid = cluster.run.metadata.uid
    return {
        "metadata": {"name": attempt.name, "namespace": "ml", "uid": attempt.uid, "resourceVersion": "1",
                     "labels": {"deepcoder.dev/ordinal": "1"}, "ownerReferences": [{"uid": uid, "controller": True}]},
        "spec": spec,
        "status": {"jobStatus": "RUNNING"},
    }  # fmt: skip


def head_object(cluster: Cluster) -> dict[str, Any]:
    """The live attempt's head."""
    head = cluster.pods[f"{cluster.name}-head"]
    labels = {"deepcoder.dev/ordinal": "1", "deepcoder.dev/role": "head"}
    return {"metadata": {"name": head.name, "uid": head.uid, "labels": labels}, "spec": {"containers": []},
            "status": {"phase": "Running"}}  # fmt: skip


def training(harness: Harness, *, drains: bool = False, admitted: bool = True) -> Cluster:
    """A run whose attempt runs and has been admitted, as the caches show it."""
    cluster = Cluster(make_run(scheduling={"queueName": "team"}))
    cluster.settle()
    cluster.start_job()
    if admitted:
        cluster.settle()
    if drains:
        cluster.edit(suspend=True)
        cluster.settle()
    harness.jobs.objects, harness.pods.objects = [job_object(cluster, suspend=False)], [head_object(cluster)]
    harness.api.objects = {cluster.name: harness.jobs.objects[0]}
    harness.now = cluster.now
    return cluster
