"""What is saved of an attempt that failed, before its cluster goes: logs without secrets, events, states of pods."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from plan_world import running

from deepcoder_operator.api.attempt_status import AttemptStatus
from deepcoder_operator.controllers import postmortem
from deepcoder_operator.controllers.postmortem import PostMortem
from deepcoder_operator.kube import errors
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
    slow: float = 0.0
    refuses: Exception | None = None
    asked: list[tuple[int, int]] = field(default_factory=list)

    async def list(self, resource: Any, namespace: str, selector: str = "", field_selector: str = "") -> Any:
        if resource.kind == "Pod":
            return self.pods, "1"
        name = field_selector.removeprefix("regarding.name=")
        return [e for e in self.events if e["regarding"]["name"] == name], "1"

    async def read_log(self, namespace: str, name: str, container: str, tail_lines: int, limit_bytes: int) -> str:
        self.asked.append((tail_lines, limit_bytes))
        await asyncio.sleep(self.slow)
        if self.refuses:
            raise self.refuses
        return self.logs[name]

    async def find(self, resource: Any, namespace: str, name: str) -> dict[str, Any] | None:
        return {"data": self.secrets[name]} if name in self.secrets else None


@dataclass
class Storage:
    """The run's folder."""

    documents: dict[str, str] = field(default_factory=dict)
    problem: StorageProblem | None = None

    async def credentials(self, run: Any) -> Credentials:
        return Credentials("AKIDEXAMPLE", "the-secret-of-s3")

    async def put(self, run: Any, key: str, data: bytes) -> None:
        if self.problem:
            raise self.problem
        self.documents.setdefault(key, data.decode())


class Ground:
    """A run whose first attempt has crashed."""

    def __init__(self) -> None:
        self.run = running().run
        assert self.run.status.attempt is not None
        self.attempt: AttemptStatus = self.run.status.attempt
        self.api, self.storage = API([pod(HEAD, "head")], {HEAD: "Traceback"}), Storage()

    async def save(self) -> tuple[str, str, bool] | None:
        api: Any = self.api
        storage: Any = self.storage
        return await PostMortem(api, storage).save(self.run, self.attempt)

    def document(self, name: str) -> str:
        return self.storage.documents[f"short/attempts/001/logs/{name}"]


@pytest.fixture
def crashed() -> Ground:
    return Ground()


async def test_log_events_and_states_are_saved_below_the_attempt_and_told_where(crashed: Ground) -> None:
    crashed.api.events = [
        event(HEAD, "Killing", "stopping", "2026-11-28T10:00:01Z"),
        event("demo-s0-a1", "Created", "cluster", "2026-11-28T09:00:00Z"),
        event("somebody-else", "Created", "not ours", "2026-11-28T09:00:00Z"),
    ]
    told = await crashed.save()
    assert told is not None
    reason, message, warning = told
    assert (reason, warning) == ("PostMortemSaved", False)
    assert message.endswith("/short/attempts/001/logs/")
    assert "s3://" in message
    assert crashed.document("driver.log") == "Traceback"
    assert [e["reason"] for e in json.loads(crashed.document("events.json"))] == ["Created", "Killing"]
    (state,) = json.loads(crashed.document("pods.json"))
    assert (state["node"], state["status"]["phase"]) == ("gpu-7", "Running")
    assert crashed.api.asked == [(20_000, 4 << 20)], "a log has no bound of its own"


async def test_of_a_thousand_workers_three_that_failed_are_read(crashed: Ground) -> None:
    for i in range(1000):
        name = f"demo-s0-a1-learner-{i}"
        crashed.api.pods.append(pod(name, "learner", "Failed" if i > 900 else "Running", 1 if i > 900 else None))
        crashed.api.logs[name] = "NCCL"
    await crashed.save()
    logs = [k.rpartition("/")[2] for k in crashed.storage.documents if k.endswith(".log")]
    assert logs == ["driver.log", *(f"demo-s0-a1-learner-{i}.log" for i in (901, 902, 903))]


async def test_no_document_holds_a_secret(crashed: Ground) -> None:
    crashed.api.secrets = {"wandb": {"key": "d2FuZGIta2V5LW9mLXRoZS10ZWFt"}}
    secrets = [TOKEN, "the-secret-of-s3", "AKIDEXAMPLE", "hf_AbCdEfGhIjKlMnOpQrSt", "AKIAIOSFODNN7EXAMPLE"]
    crashed.api.logs[HEAD] = "\n".join(f"env: {s}" for s in secrets)
    crashed.api.events = [event(HEAD, "Failed", f"bad key {TOKEN}", "2026-11-28T10:00:01Z")]
    crashed.api.pods[0]["status"]["message"] = f"exited with {TOKEN}"
    await crashed.save()
    assert len(crashed.storage.documents) == 3
    for name, text in crashed.storage.documents.items():
        assert not [s for s in secrets if s in text], name
        assert "[redacted]" in text


async def test_what_cannot_be_had_is_named_and_the_rest_is_saved(crashed: Ground) -> None:
    crashed.api.refuses = errors.Forbidden("pods/log is forbidden", 403)
    told = await crashed.save()
    assert told is not None
    assert (told[0], told[2]) == ("PostMortemPartly", True)
    assert f"the log of {HEAD}" in told[1]
    assert "forbidden" in told[1]
    assert {k.rpartition("/")[2] for k in crashed.storage.documents} == {"events.json", "pods.json"}


async def test_head_that_is_gone_is_said(crashed: Ground) -> None:
    crashed.api.pods = []
    told = await crashed.save()
    assert told is not None
    assert "its pod is gone" in told[1]


async def test_bucket_that_refuses_is_said_once(crashed: Ground) -> None:
    crashed.storage.problem = StorageProblem("CredentialsRefused", "may not write")
    told = await crashed.save()
    assert told is not None
    assert told[1].count("may not write") == 1


async def test_log_that_does_not_come_holds_up_nothing(crashed: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postmortem, "GATHER_SECONDS", 0.05)
    crashed.api.slow = 60
    async with asyncio.timeout(5):
        told = await crashed.save()
    assert told is not None
    assert told[0] == "PostMortemPartly"
    assert "not read within" in told[1]
    assert {k.rpartition("/")[2] for k in crashed.storage.documents} == {"events.json", "pods.json"}, (
        "the rest is saved"
    )


async def test_it_is_done_once_for_an_attempt(crashed: Ground) -> None:
    api: Any = crashed.api
    storage: Any = crashed.storage
    saver = PostMortem(api, storage)
    assert await saver.save(crashed.run, crashed.attempt) is not None
    assert await saver.save(crashed.run, crashed.attempt) is None
    assert len(crashed.api.asked) == 1
