"""What tells why an attempt failed, saved in the run's folder before its cluster goes: logs, events, states of pods.

Once the RayJob is deleted all of this is gone with its pods. It is for people, so nothing here may fail a pass or hold
up GPUs for long: each part is tried within one deadline, and what could not be had is named in an event. Values that
are secret, those that the pods' environment takes from Secrets and those of the bucket's credentials, are taken out.
Documents are put once, so a repetition after a crash adds what is missing and changes nothing.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from typing import Any

from deepcoder_contracts.layout import log_key
from deepcoder_operator.api.attempt_status import AttemptStatus
from deepcoder_operator.api.run import DeepCoderRun
from deepcoder_operator.domain.names import LABEL_ORDINAL, LABEL_ROLE, LABEL_RUN_UID
from deepcoder_operator.domain.resolve import storage_key
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import EVENTS, PODS, SECRETS
from deepcoder_operator.storage.s3 import StorageProblem
from deepcoder_operator.storage.service import StorageService

log = logging.getLogger(__name__)

GATHER_SECONDS = 15.0
PUT_SECONDS = 10.0
"""Together less than the plan gives before it deletes the RayJob anyway."""

TAIL_LINES = 20_000
LOG_BYTES = 4 << 20
_FAILED_WORKERS = 3
_SECRETS = 8
_SHORTEST_SECRET = 6
"""Shorter values are words that stand everywhere in a log."""

_TOKENS = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{16}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)")
"""Tokens that are known by their look: of Hugging Face, of AWS, of service accounts."""


@dataclass
class _Findings:
    """What has been gathered, by document, and what could not be had."""

    documents: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


class PostMortem:
    """Saves what is known of attempts that failed."""

    def __init__(self, kube: Kube, storage: StorageService) -> None:
        self._kube, self._storage = kube, storage
        self._done: set[tuple[str, int]] = set()

    async def save(self, run: DeepCoderRun, attempt: AttemptStatus) -> tuple[str, str, bool] | None:
        """Save, in bounded time; what is to be told (reason, message, warning), None if it was told before."""
        key = (run.metadata.uid, attempt.ordinal)
        if key in self._done:
            return None
        self._done.add(key)
        if len(self._done) > 4096:
            self._done = {key}
        stage = run.spec.stages[attempt.stage_index].name
        bucket, where = run.spec.checkpoint.s3.bucket, log_key(stage, attempt.ordinal, "")
        uri = f"s3://{bucket}/{storage_key(run)}/{where}"
        found = _Findings()
        try:
            async with asyncio.timeout(GATHER_SECONDS):
                await self._gather(run, attempt, found)
        except TimeoutError:
            found.missing.append(f"what was not read within {GATHER_SECONDS:.0f} s")
        try:
            async with asyncio.timeout(PUT_SECONDS):
                await self._put(run, stage, attempt.ordinal, found)
        except TimeoutError:
            found.missing.append(f"what was not stored within {PUT_SECONDS:.0f} s")
        if found.missing:
            return "PostMortemPartly", f"{uri} lacks {'; '.join(found.missing)}"[:1000], True
        return "PostMortemSaved", f"what is known of attempt {attempt.ordinal} is in {uri}", False

    async def _gather(self, run: DeepCoderRun, attempt: AttemptStatus, found: _Findings) -> None:
        namespace, missing = run.metadata.namespace, found.missing
        selector = f"{LABEL_RUN_UID}={run.metadata.uid},{LABEL_ORDINAL}={attempt.ordinal}"
        listed = await _tried("states of pods", missing, self._kube.list(PODS, namespace, selector))
        pods = listed[0] if listed else []
        secret = await self._secrets(run, pods)
        if listed:
            found.documents["pods.json"] = _redacted(_json([_state(p) for p in pods]), secret)
        about = [attempt.name, *dict.fromkeys(c for p in pods if (c := _label(p, "ray.io/cluster")))]
        about += [p["metadata"]["name"] for p in pods][: 2 * _FAILED_WORKERS]
        events = await _tried("events", missing, self._events(namespace, about))
        if events is not None:
            found.documents["events.json"] = _redacted(_json(events), secret)
        heads = [p for p in pods if _label(p, LABEL_ROLE) == "head"]
        for pod in [*heads, *_failed(p for p in pods if p not in heads)]:
            name = pod["metadata"]["name"]
            container = pod["spec"]["containers"][0]["name"]
            read = self._kube.read_log(namespace, name, container, TAIL_LINES, LOG_BYTES)
            text = await _tried(f"the log of {name}", missing, read)
            if text is not None:
                document = "driver.log" if pod in heads and "driver.log" not in found.documents else f"{name}.log"
                found.documents[document] = _redacted(text, secret)
        if not heads:
            missing.append("the head's log: its pod is gone")

    async def _events(self, namespace: str, names: Iterable[str]) -> list[Object]:
        found: list[Object] = []
        for name in dict.fromkeys(names):
            found += (await self._kube.list(EVENTS, namespace, field_selector=f"regarding.name={name}"))[0]
        told = [
            {
                "time": e.get("eventTime")
                or e.get("deprecatedLastTimestamp")
                or e["metadata"].get("creationTimestamp"),
                "object": f"{(e.get('regarding') or {}).get('kind')}/{(e.get('regarding') or {}).get('name')}",
                "type": e.get("type"),
                "reason": e.get("reason"),
                "note": e.get("note"),
                "count": (e.get("series") or {}).get("count") or e.get("deprecatedCount") or 1,
            }
            for e in found
        ]
        return sorted(told, key=lambda e: str(e["time"]))

    async def _put(self, run: DeepCoderRun, stage: str, ordinal: int, found: _Findings) -> None:
        for name, text in found.documents.items():
            try:
                await self._storage.put(run, log_key(stage, ordinal, name), text.encode())
            except StorageProblem as e:
                found.missing.append(f"{name}: {e.problem.reason}: {e.problem.message}")
                return

    async def _secrets(self, run: DeepCoderRun, pods: Iterable[Object]) -> list[str]:
        """Values that may stand in no document, longest first; of Secrets that can be read."""
        values: set[str] = set()
        try:
            credentials = await self._storage.credentials(run)
            values |= {credentials.secret_key, credentials.access_key, credentials.session_token or ""}
        except (StorageProblem, errors.KubeError):
            pass  # without them nothing can be put either
        for name in list(dict.fromkeys(_referred(pods)))[:_SECRETS]:
            try:
                found = await self._kube.find(SECRETS, run.metadata.namespace, name)
            except errors.KubeError as e:
                log.debug("secret %s is not read for a post-mortem: %s", name, e)
                continue
            for value in ((found or {}).get("data") or {}).values():
                values.add(base64.b64decode(value).decode(errors="ignore").strip())
        return sorted((v for v in values if len(v) >= _SHORTEST_SECRET), key=len, reverse=True)


async def _tried(what: str, missing: list[str], asked: Awaitable[Any]) -> Any:
    """The answer, or None and a note of what is missing and why."""
    try:
        return await asked
    except errors.KubeError as e:
        missing.append(f"{what} ({type(e).__name__}: {e})"[:200])
        return None


def _failed(pods: Iterable[Object]) -> list[Object]:
    """Workers that ended badly, a few of them: a thousand learners tell the same story."""

    def bad(pod: Object) -> bool:
        status = pod.get("status") or {}
        states = [(c.get("state") or {}).get("terminated") for c in status.get("containerStatuses") or ()]
        return status.get("phase") == "Failed" or any(s and s.get("exitCode") for s in states)

    return [p for p in pods if bad(p)][:_FAILED_WORKERS]


def _referred(pods: Iterable[Object]) -> Iterable[str]:
    """Secrets that the environment of containers is taken from."""
    for pod in pods:
        for container in pod["spec"].get("containers") or ():
            for variable in container.get("env") or ():
                reference = (variable.get("valueFrom") or {}).get("secretKeyRef")
                if reference:
                    yield str(reference["name"])
            for source in container.get("envFrom") or ():
                if source.get("secretRef"):
                    yield str(source["secretRef"]["name"])


def _redacted(text: str, values: Iterable[str]) -> str:
    for value in values:
        text = text.replace(value, "[redacted]")
    return _TOKENS.sub("[redacted]", text)


def _state(pod: Object) -> Object:
    """A pod as it is, without its spec: who it is, where it runs, what became of its containers."""
    meta = pod["metadata"]
    kept = {k: meta[k] for k in ("name", "uid", "labels", "creationTimestamp", "deletionTimestamp") if k in meta}
    return {"metadata": kept, "node": pod["spec"].get("nodeName"), "status": pod.get("status") or {}}


def _label(obj: Object, name: str) -> str | None:
    value: str | None = (obj["metadata"].get("labels") or {}).get(name)
    return value


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, default=str)
