"""Saves evidence of why an attempt failed (logs, events, pod states) in the run's folder before its cluster is deleted.

Deleting the RayJob removes all of this with its pods. The evidence is for people, so nothing here may fail a pass,
occupy a pass's slot or hold GPUs for long. All parts share one deadline, and few are collected at a time, because logs
are held in memory. An event names what could not be collected. Logs are not requested from a lost node.

Values of all Secrets that the pods can read, or could before they were gone, of variables named like secrets, and of
the bucket's credentials are removed. If one of them is not known, no program output is saved, nor any message that may
quote it. Each document is written once: a repetition after a crash adds missing documents and changes none.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from typing import Any

from deepcoder_contracts.api.attempt_status import AttemptStatus
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_contracts.layout import log_key
from deepcoder_contracts.redaction import Redactor, without_words
from deepcoder_operator.controllers.known_secrets import Unknown, redactor_of, templates_of
from deepcoder_operator.domain.classify import lost_its_node
from deepcoder_operator.domain.names import LABEL_ORDINAL, LABEL_ROLE, LABEL_RUN_UID, trainer_container
from deepcoder_operator.domain.owners import controller_uid
from deepcoder_operator.domain.resolve import storage_key
from deepcoder_operator.domain.world import pod_view
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.cache_transform import interned
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import EVENTS, PODS
from deepcoder_operator.storage.s3 import StorageProblem
from deepcoder_operator.storage.service import StorageService

log = logging.getLogger(__name__)

GATHER_SECONDS = 15.0
PUT_SECONDS = 10.0
"""Together less than the time after which the plan deletes the RayJob anyway."""

TAIL_LINES = 20_000
LOG_BYTES = 4 << 20
_FAILED_WORKERS = 3
_TRIES = 3
_AT_A_TIME = 4
"""Largest number of post-mortems that hold logs in memory, at most four of `LOG_BYTES` each."""


@dataclass
class _Findings:
    """The collected documents, and what could not be collected."""

    documents: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


class PostMortem:
    """Saves evidence of failed attempts."""

    def __init__(self, kube: Kube, storage: StorageService) -> None:
        self._kube, self._storage = kube, storage
        self._done: set[tuple[str, int]] = set()
        self._turns = asyncio.Semaphore(_AT_A_TIME)

    async def save(self, run: DeepCoderRun, attempt: AttemptStatus) -> tuple[str, str, bool] | None:
        """Save within a bound. Returns the event (reason, message, warning), or None if it was posted before."""
        key = (run.metadata.uid, attempt.ordinal)
        if key in self._done:
            return None
        stage = run.spec.stages[attempt.stage_index].name
        bucket, where = run.spec.checkpoint.s3.bucket, log_key(stage, attempt.ordinal, "")
        uri = f"s3://{bucket}/{storage_key(run)}/{where}"
        found = _Findings()
        async with self._storage.aside():
            stored = await self._save(run, attempt, stage, found)
        if stored:
            self._done = {key} if len(self._done) > 4096 else self._done | {key}
        if found.missing:
            return "PostMortemPartly", f"{uri} lacks {'; '.join(found.missing)}"[:1000], True
        return "PostMortemSaved", f"logs, events and pods of attempt {attempt.ordinal} are in {uri}", False

    async def _save(self, run: DeepCoderRun, attempt: AttemptStatus, stage: str, found: _Findings) -> bool:
        """Store the documents. Returns whether all of them are stored."""
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(began + GATHER_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            found.missing.append(f"everything: other attempts' logs were being saved for {GATHER_SECONDS:.0f} s")
            return False
        try:
            try:
                async with asyncio.timeout_at(began + GATHER_SECONDS):
                    await self._gather(run, attempt, found)
            except TimeoutError:
                found.missing.append(f"what was not read within {GATHER_SECONDS:.0f} s")
            try:
                async with asyncio.timeout(PUT_SECONDS):
                    return await self._put(run, stage, attempt.ordinal, found)
            except TimeoutError:
                found.missing.append(f"what was not stored within {PUT_SECONDS:.0f} s")
                return False
        finally:
            self._turns.release()

    async def _gather(self, run: DeepCoderRun, attempt: AttemptStatus, found: _Findings) -> None:
        namespace, missing = run.metadata.namespace, found.missing
        selector = f"{LABEL_RUN_UID}={run.metadata.uid},{LABEL_ORDINAL}={attempt.ordinal}"
        listed = await _tried("states of pods", missing, self._kube.list(PODS, namespace, selector, keep=_kept))
        pods = _of(attempt, listed[0] if listed else [])
        # Words of a worker whose pod is gone remain in the head's log, and its Secrets only in the spec.
        redactor = await self._redactor(run, [*pods, *templates_of(run, attempt.stage_index)], missing)
        known, redactor = redactor is not None, redactor or Redactor(())
        if listed:
            found.documents["pods.json"] = await _written([_state(p) for p in pods], redactor, known)
        about = [attempt.name, *dict.fromkeys(c for p in pods if (c := _label(p, "ray.io/cluster")))]
        about += [p["metadata"]["name"] for p in pods][: 2 * _FAILED_WORKERS]
        events = await _tried("events", missing, self._events(namespace, about))
        if events is not None:
            found.documents["events.json"] = await _written(events, redactor, known)
        heads = [p for p in pods if _label(p, LABEL_ROLE) == "head"]
        asked = [*heads, *_failed(p for p in pods if p not in heads)] if known else []
        for pod in asked:
            name, seen = pod["metadata"]["name"], pod_view(pod)
            if seen.unreachable or lost_its_node(seen):  # a request for a log from there would only hang
                missing.append(f"the log of {name}: its node is lost")
                continue
            container = str(trainer_container(pod["spec"]["containers"])["name"])
            text = await _tried(f"the log of {name}", missing, self._log(namespace, name, container))
            if text is not None:
                document = "head.log" if pod in heads and "head.log" not in found.documents else f"{name}.log"
                # In a thread, like documents (`_written`): it searches megabytes many times.
                found.documents[document] = await asyncio.to_thread(redactor.text, text)
        if listed and not heads:
            missing.append("the head's log: its pod is gone")

    async def _log(self, namespace: str, pod: str, container: str) -> str:
        for _ in range(_TRIES - 1):
            try:
                return await self._kube.read_log(namespace, pod, container, TAIL_LINES, LOG_BYTES)
            except errors.Unavailable as e:
                log.debug("the log of %s is requested again: %s", pod, e)
                await asyncio.sleep(1.0)
        return await self._kube.read_log(namespace, pod, container, TAIL_LINES, LOG_BYTES)

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

    async def _put(self, run: DeepCoderRun, stage: str, ordinal: int, found: _Findings) -> bool:
        for name, text in found.documents.items():
            try:
                await self._storage.put(run, log_key(stage, ordinal, name), text.encode())
            except StorageProblem as e:
                found.missing.append(f"{name}: {e.problem.reason}: {e.problem.message}")
                return False
        return True

    async def _redactor(self, run: DeepCoderRun, pods: Iterable[Object], missing: list[str]) -> Redactor | None:
        """Return the redactor, or None, with a note of why, if a secret is not known."""
        try:
            return await redactor_of(self._kube, self._storage, run, pods)
        except Unknown as e:
            missing.append(f"all program output, because the secrets in it are not known: {e}")
            return None


async def _tried(what: str, missing: list[str], asked: Awaitable[Any]) -> Any:
    """Return the answer, or None with a note of what is missing and why."""
    try:
        return await asked
    except errors.KubeError as e:
        missing.append(f"{what} ({type(e).__name__}: {e})"[:200])
        return None


def _of(attempt: AttemptStatus, labelled: list[Object]) -> list[Object]:
    """Return the pods of the attempt's cluster. A RayJob that somebody copied has the same labels, as have its pods."""
    clusters = [controller_uid(p) for p in labelled if p["metadata"]["uid"] == attempt.head_uid]
    return [p for p in labelled if not clusters or controller_uid(p) in clusters]


def _failed(pods: Iterable[Object]) -> list[Object]:
    """Return a few of the workers that failed: a thousand learners have the same story."""
    ended = ((pod, pod_view(pod)) for pod in pods)
    return [pod for pod, seen in ended if seen.phase == "Failed" or seen.exit_code][:_FAILED_WORKERS]


def _kept(pod: Object) -> Object:
    """Return a compact form of a pod, of which there may be two thousand: shared strings, no managed fields."""
    held: Object = interned({**pod, "metadata": {k: v for k, v in pod["metadata"].items() if k != "managedFields"}})
    return held


def _state(pod: Object) -> Object:
    """Return a pod without its spec: its identity, its node, and the state of its containers."""
    meta = pod["metadata"]
    kept = {k: meta[k] for k in ("name", "uid", "labels", "creationTimestamp", "deletionTimestamp") if k in meta}
    return {"metadata": kept, "node": pod["spec"].get("nodeName"), "status": pod.get("status") or {}}


def _label(obj: Object, name: str) -> str | None:
    value: str | None = (obj["metadata"].get("labels") or {}).get(name)
    return value


async def _written(value: Any, redactor: Redactor, known: bool) -> str:
    """Return the text of a document without secrets, and without free text unless all secrets are known.

    In a thread, because the states of thousands of pods take seconds, and heartbeats must be answered and the Lease
    renewed meanwhile.
    """

    def write() -> str:
        return _json(redactor.document(value if known else without_words(value)))

    return await asyncio.to_thread(write)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, default=str, ensure_ascii=False)
