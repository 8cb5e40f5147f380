"""An attempt that has crashed: its pods, their logs and events, the Secrets they read, and the bucket."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from plan_world import running

from deepcoder_contracts.api.attempt_status import AttemptStatus
from deepcoder_operator.controllers.passes import PassLimit
from deepcoder_operator.controllers.postmortem import PostMortem
from deepcoder_operator.storage.s3 import Credentials, StorageProblem

HEAD = "demo-s0-a1-head"
TOKEN = "wandb-key-of-the-team"


def pod(name: str, role: str, phase: str = "Running", code: int | None = None) -> dict[str, Any]:
    state = {"terminated": {"exitCode": code, "reason": "Error"}} if code is not None else {"running": {}}
    secret = {"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "key"}}}
    return {
        "metadata": {"name": name, "uid": name, "labels": {"deepcoder.dev/role": role, "ray.io/cluster": "demo-c"}},
        "spec": {"nodeName": "gpu-7", "containers": [{"name": "ray", "env": [secret]}]},
        "status": {"phase": phase, "containerStatuses": [{"name": "ray", "state": state}]},
    }


def encoded(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def event(name: str, reason: str, note: str, at: str) -> dict[str, Any]:
    meta = {"name": reason, "namespace": "ml", "creationTimestamp": at}
    return {
        "metadata": meta,
        "regarding": {"kind": "Pod", "name": name},
        "reason": reason,
        "note": note,
        "eventTime": at,
    }


@dataclass
class API:
    """Pods, their logs and events; `slow` is how long a log takes, `refuses` what is raised instead of logs."""

    pods: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    withheld: dict[str, Exception] = field(default_factory=dict)
    slow: float = 0.0
    refuses: Exception | None = None
    asked: list[tuple[int, int]] = field(default_factory=list)
    event_lists: int = 0
    containers: list[str] = field(default_factory=list)
    """Whose logs were asked for."""
    held: list[dict[str, Any]] = field(default_factory=list)
    """Pods as they are held while their attempt's end is saved."""

    async def list(
        self,
        resource: Any,
        namespace: str,
        selector: str = "",
        field_selector: str = "",
        keep: Callable[[Any], Any] = lambda obj: obj,
    ) -> Any:
        if resource.kind == "Pod":
            self.held = [keep(pod) for pod in self.pods]
            return self.held, "1"
        self.event_lists += 1
        name = field_selector.removeprefix("regarding.name=")
        return [e for e in self.events if e["regarding"]["name"] == name], "1"

    async def read_log(self, namespace: str, name: str, container: str, tail_lines: int, limit_bytes: int) -> str:
        self.asked.append((tail_lines, limit_bytes))
        self.containers.append(container)
        await asyncio.sleep(self.slow)
        if self.refuses:
            raise self.refuses
        return self.logs[name]

    async def find(self, resource: Any, namespace: str, name: str) -> dict[str, Any] | None:
        if name in self.withheld:
            raise self.withheld[name]
        return {"data": self.secrets[name]} if name in self.secrets else None


@dataclass
class Storage:
    """The run's folder."""

    documents: dict[str, str] = field(default_factory=dict)
    problem: StorageProblem | None = None
    unknown: StorageProblem | None = None
    """Why its credentials are not known."""
    slow: float = 0.0
    limit: PassLimit = field(default_factory=lambda: PassLimit(1))

    def aside(self) -> AbstractAsyncContextManager[None]:
        return self.limit.aside()

    async def credentials(self, run: Any) -> Credentials:
        if self.unknown:
            raise self.unknown
        return Credentials("AKIDEXAMPLE", "the-secret-of-s3", "the-session-of-s3")

    async def put(self, run: Any, key: str, data: bytes) -> None:
        await asyncio.sleep(self.slow)
        if self.problem:
            raise self.problem
        self.documents.setdefault(key, data.decode())


class Harness:
    """A run whose first attempt has crashed."""

    def __init__(self) -> None:
        self.run = running().run
        assert self.run.status.attempt is not None
        self.attempt: AttemptStatus = self.run.status.attempt
        self.api = API([pod(HEAD, "head")], {HEAD: "Traceback"}, secrets={"wandb": {"key": encoded(TOKEN)}, "s3": {}})
        self.storage = Storage()

    def saver(self) -> PostMortem:
        api: Any = self.api
        storage: Any = self.storage
        return PostMortem(api, storage)

    async def save(self) -> tuple[str, str, bool] | None:
        return await self.saver().save(self.run, self.attempt)

    def document(self, name: str) -> str:
        return self.storage.documents[f"short/attempts/001/logs/{name}"]
