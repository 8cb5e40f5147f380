"""What carries out a plan, between an API server, a bucket and a cache of RayJobs that the test plays."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from plan_world import Cluster, make_run

from deepcoder_operator.builders.settings import TrainerSettings
from deepcoder_operator.controllers.carry_out import Executor
from deepcoder_operator.domain import draft as d
from deepcoder_operator.domain.world import Problem
from deepcoder_operator.kube import errors
from deepcoder_operator.storage.s3 import Credentials, StorageProblem

SETTINGS = TrainerSettings("https://operator:8443", "ca", "kuberay-system", None)


@dataclass
class API:
    """Objects by kind and name; `refuses` says what is raised for a kind."""

    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    refuses: dict[str, Exception] = field(default_factory=dict)
    undeletable: dict[str, Exception] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    """Fields of a RayJob that KubeRay's CRDs do not know."""
    applied: list[dict[str, Any]] = field(default_factory=list)
    patches: list[dict[str, Any]] = field(default_factory=list)
    """Of runs."""
    graces: list[tuple[str, int | None]] = field(default_factory=list)
    """What was to be deleted, and the seconds that it was given."""

    async def create(self, obj: dict[str, Any], *, strict: bool = False) -> dict[str, Any]:
        if obj["kind"] in self.refuses:
            raise self.refuses[obj["kind"]]
        if strict and self.unknown:
            raise errors.UnknownFields("strict decoding error", 400, self.unknown)
        key = (obj["kind"], obj["metadata"]["name"])
        if key in self.objects:
            raise errors.AlreadyExists("already exists", 409)
        self.objects[key] = deepcopy(obj)
        self.objects[key]["metadata"]["resourceVersion"] = "1"
        return obj

    async def apply(self, obj: dict[str, Any]) -> dict[str, Any]:
        self.applied.append(obj)
        return obj

    async def find(self, resource: Any, namespace: str, name: str) -> dict[str, Any] | None:
        return self.objects.get((resource.kind, name))

    async def get(self, resource: Any, namespace: str, name: str) -> dict[str, Any]:
        return self.objects[(resource.kind, name)]

    async def delete(
        self, resource: Any, namespace: str, name: str, *, uid: str = "", grace_seconds: int | None = None
    ) -> bool:
        key = (resource.kind, name)
        self.graces.append((name, grace_seconds))
        if resource.kind in self.undeletable:
            raise self.undeletable[resource.kind]
        if key in self.objects and uid in ("", self.objects[key]["metadata"]["uid"]):
            del self.objects[key]
        return key not in self.objects

    async def patch(self, resource: Any, namespace: str, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        if "DeepCoderRun" in self.refuses:
            raise self.refuses["DeepCoderRun"]
        self.patches.append(patch)
        return patch


@dataclass
class Storage:
    """A bucket that may refuse."""

    problem: StorageProblem | None = None
    claims: int = 0
    ca: str | None = None
    """Authority of a server that no public one knows."""

    async def claim(self, run: Any) -> None:
        if self.problem:
            raise self.problem
        self.claims += 1

    async def credentials(self, run: Any) -> Credentials:
        return Credentials("a", "b", ca=self.ca)

    async def delete_folder(self, run: Any) -> int:
        if self.problem:
            raise self.problem
        return 0


class Jobs:
    """The cache of RayJobs, told of what was made."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def observe(self, obj: dict[str, Any]) -> None:
        self.seen.append(obj["metadata"]["name"])


class Harness:
    """A run whose first attempt is to be made."""

    def __init__(self) -> None:
        cluster = Cluster(make_run())
        while cluster.run.status.attempt is None:
            cluster.step()
        self.run = cluster.run
        assert self.run.status.attempt is not None
        self.make = [d.EnsureRunObjects(), d.EnsurePool(), d.CreateAttempt(self.run.status.attempt)]
        self.api, self.storage, self.jobs = API(), Storage(), Jobs()
        api: Any = self.api
        storage: Any = self.storage
        jobs: Any = self.jobs
        self.told: list[str] = []
        self.adopted: list[Any] = []
        self.executor = Executor(api, jobs, storage, SETTINGS, self._record)

    def _record(self, obj: Any, reason: str, message: str, *, warning: bool = False) -> None:
        self.told.append(reason)

    async def carry_out(self, actions: Any) -> Problem | None:
        return await self.executor.carry_out(self.run, actions, self.adopted.append)

    async def problem(self, *actions: Any) -> Problem:
        found = await self.carry_out(actions or self.make)
        assert found is not None
        return found
