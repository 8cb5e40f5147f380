"""Plays KubeRay, the kubelet and the trainer for one namespace of a real API server.

A RayJob gets a RayCluster and a head pod (an object that nobody runs), then RUNNING; the trainer's part is done by
the test: checkpoints and exit records in the bucket, reports to the operator's real HTTPS endpoint.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import aiohttp
from api_changes import Changes
from s3_server import BUCKET, S3Server

from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.exit import ExitRecord
from deepcoder_contracts.layout import checkpoint_dir, claim_key, evaluation_dir, exit_key
from deepcoder_contracts.manifest import Claim, FileEntry, Manifest, ManifestKind
from deepcoder_contracts.progress import AUDIENCE, ProgressReply, ProgressReport, TrainerPhase
from deepcoder_contracts.stage import StageConfig, StageType
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import CONFIGMAPS, PODS, RAYCLUSTERS, RAYJOBS, RUNS

LOOK_SECONDS = 0.5
"""Longest time between two looks, for what a test has changed here."""


class Standin:
    """KubeRay and kubelet of a namespace, which look when something has changed; stop by cancelling `run`."""

    def __init__(self, kube: Kube, namespace: str, s3: S3Server) -> None:
        self.kube, self.namespace, self.s3 = kube, namespace, s3
        self.starts = True
        self.in_no_hurry = False
        """Whether a job is started only when its run says that it is starting, and nobody collects its pods."""
        self.ends_pods = True
        """Whether pods that are deleted end at once, as if nothing ran in them."""
        self.node: str | None = None
        """That pods are bound to: without one the API server itself lets a deleted pod go at once."""
        self.seen: list[str] = []
        self.changes = Changes(kube, namespace, RUNS, RAYJOBS, PODS)
        self._mounted: dict[str, dict[str, str]] = {}

    async def run(self) -> None:
        """Start every RayJob that appears."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.changes.follow())
            while True:
                seen = self.changes.count
                with suppress(errors.Unavailable, errors.NotFound):  # while a kind comes or goes the server says so
                    await self._look_at_jobs()
                    if self.ends_pods:
                        await self._end_deleted_pods()
                await self.changes.after(seen, LOOK_SECONDS)

    async def _look_at_jobs(self) -> None:
        for job in self.changes.all(RAYJOBS):
            name = job["metadata"]["name"]
            if name not in self.seen:
                self.seen.append(name)
            if job["metadata"].get("deletionTimestamp"):
                continue
            status, suspended = job.get("status") or {}, job["spec"].get("suspend")
            if status.get("jobDeploymentStatus") == "Failed":
                continue
            with suppress(errors.NotFound, errors.Conflict):
                if suspended and status.get("rayClusterName"):
                    await self._suspend(job)
                elif self.starts and not suspended and not status.get("rayClusterName") and self._is_due(job):
                    await self._start(job)

    def _is_due(self, job: Object) -> bool:
        """At once, or when the operator has seen the job and noted in its run that it starts."""
        if not self.in_no_hurry:
            return True
        attempts = [(run.get("status") or {}).get("attempt") or {} for run in self.changes.all(RUNS)]
        return any((a.get("name"), a.get("state")) == (job["metadata"]["name"], "Starting") for a in attempts)

    async def _start(self, job: Object) -> None:
        meta = job["metadata"]
        cluster = await self._create(
            {
                "apiVersion": "ray.io/v1",
                "kind": "RayCluster",
                "metadata": child(job, f"{meta['name']}-c"),
                "spec": job["spec"]["rayClusterSpec"],
            }
        )
        template = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
        pod_meta = child(cluster, f"{meta['name']}-head") | {"labels": template["metadata"]["labels"]}
        if self.in_no_hurry:
            del pod_meta["ownerReferences"]
        spec = template["spec"] | ({"nodeName": self.node} if self.node else {})
        await self._create({"apiVersion": "v1", "kind": "Pod", "metadata": pod_meta, "spec": spec})
        await self.kube.patch(
            PODS, self.namespace, pod_meta["name"],
            {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}, "status",
        )  # fmt: skip
        await self.kube.patch(
            RAYCLUSTERS, self.namespace, cluster["metadata"]["name"], {"status": {"state": "ready"}}, "status"
        )
        await self.set_job(meta["name"], rayClusterName=cluster["metadata"]["name"], jobStatus="RUNNING",
                           jobDeploymentStatus="Running")  # fmt: skip

    async def _suspend(self, job: Object) -> None:
        """As KubeRay does: the cluster's object goes at once, its pods when they have ended."""
        name = job["metadata"]["name"]
        await self.kube.delete(RAYCLUSTERS, self.namespace, job["status"]["rayClusterName"])
        await self.set_job(name, rayClusterName="", jobStatus="", jobDeploymentStatus="Suspended")

    async def _create(self, obj: Object) -> Object:
        try:
            return await self.kube.create(obj)
        except errors.AlreadyExists:
            resource = {"RayCluster": RAYCLUSTERS, "Pod": PODS}[obj["kind"]]
            return await self.kube.get(resource, self.namespace, obj["metadata"]["name"])

    async def _end_deleted_pods(self) -> None:
        for meta in [pod["metadata"] for pod in self.changes.all(PODS)]:
            if meta.get("deletionTimestamp") and "deepcoder.dev/run-uid" in meta.get("labels", {}):
                await self.kube.delete(PODS, self.namespace, meta["name"], uid=meta["uid"], grace_seconds=0)

    async def set_job(self, name: str, **status: str) -> None:
        """KubeRay writes a RayJob's status."""
        written = await self.kube.patch(RAYJOBS, self.namespace, name, {"status": status}, "status")
        self.changes.note(RAYJOBS, written)

    async def config_map(self, name: str) -> str:
        """Name of the ConfigMap that an attempt's head mounts."""
        job = await self.kube.get(RAYJOBS, self.namespace, name)
        return mounted_config_map(job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"])

    async def config(self, name: str) -> StageConfig:
        """The stage config as the head mounts it."""
        return StageConfig.from_json((await self._files(name))["stage.json"])

    async def _files(self, name: str) -> dict[str, str]:
        """What the head mounts; once mounted it stays, whatever becomes of the ConfigMap and the RayJob."""
        if name not in self._mounted:
            found = await self.kube.get(CONFIGMAPS, self.namespace, await self.config_map(name))
            self._mounted[name] = found["data"]
        return self._mounted[name]

    async def save(
        self, name: str, step: int, *, final: bool = False, results: bytes | None = None, **metrics: float
    ) -> str:
        """The trainer claims and commits, weights or an evaluation's results; returns the key of the manifest's
        folder."""
        config = await self.config(name)
        root = config.storage.uri.removeprefix(f"s3://{BUCKET}/")
        client: Any = self.s3.client()
        run, stage, ordinal = config.run, config.stage, config.ordinal
        key = f"{root}/{claim_key(stage.name, ordinal)}"
        claim = Claim(run=run, stage=stage.name, ordinal=ordinal, claimed_at=datetime.now(UTC))
        if not client.list_objects_v2(Bucket=BUCKET, Prefix=key).get("Contents"):
            client.put_object(Bucket=BUCKET, Key=key, Body=claim.to_json())
        evaluation = stage.type is StageType.EVALUATE
        evaluation_key = hashlib.sha256(f"{stage.name}".encode()).hexdigest()
        below = evaluation_dir(evaluation_key) if evaluation else checkpoint_dir(stage.name, step, ordinal)
        folder = f"{root}/{below}"
        path = "weights.bin" if results is None else "results.json"
        payload = f"weights of {stage.name} at {step}".encode() if results is None else results
        put = client.put_object(Bucket=BUCKET, Key=f"{folder}/{path}", Body=payload, ChecksumAlgorithm="SHA256")
        entry = FileEntry(
            path=path, size=len(payload), sha256=hashlib.sha256(payload).hexdigest(),
            s3_checksum=put["ChecksumSHA256"],
        )  # fmt: skip
        manifest = Manifest(
            kind=ManifestKind.EVALUATION if evaluation else ManifestKind.CHECKPOINT,
            run=run, stage=stage.name, stage_index=stage.index, ordinal=ordinal, step=step, final=final,
            parent=config.parent, config_digest=config.provenance.config_digest, code_digest=sha256_digest(b"code"),
            seed=0, world_size=1, metrics=metrics, evaluation_key=evaluation_key if evaluation else None,
            created_at=datetime.now(UTC), files=[entry],
        )  # fmt: skip
        client.put_object(Bucket=BUCKET, Key=f"{folder}/MANIFEST.json", Body=manifest.to_json(), IfNoneMatch="*")
        return folder

    async def leave(self, name: str, code: int, reason: str) -> None:
        """The trainer writes exit.json and ends; KubeRay sees it, if its job is still there."""
        config = await self.config(name)
        root = config.storage.uri.removeprefix(f"s3://{BUCKET}/")
        client: Any = self.s3.client()
        record = ExitRecord(code=code, reason=reason)
        client.put_object(
            Bucket=BUCKET, Key=f"{root}/{exit_key(config.stage.name, config.ordinal)}", Body=record.to_json()
        )
        ended = ("FAILED", "Failed") if code else ("SUCCEEDED", "Complete")
        with suppress(errors.NotFound):  # the job of an attempt that was evicted goes before its pods
            await self.set_job(name, jobStatus=ended[0], jobDeploymentStatus=ended[1])

    async def report(
        self, name: str, port: int, step: int, *, token: str | None = None, **metrics: float
    ) -> ProgressReply:
        """The trainer's heartbeat, over real TLS with a real token of the head's pod, or with another."""
        config = await self.config(name)
        trusted = (await self._files(name))["ca.crt"]
        report = ProgressReport(
            ordinal=config.ordinal, stage=config.stage.name, phase=TrainerPhase.TRAINING, step=step,
            max_steps=config.stage.max_steps, metrics=metrics, sent_at=datetime.now(UTC),
        )  # fmt: skip
        context = ssl.create_default_context(cadata=trusted)
        token = token or await self.token(name)
        assert config.progress is not None
        path = config.progress.url.partition("//")[2].partition("/")[2]
        async with aiohttp.ClientSession() as session:
            answer = await session.post(
                f"https://localhost:{port}/{path}", data=report.to_json(), ssl=context,
                headers={"Authorization": f"Bearer {token}"}, timeout=aiohttp.ClientTimeout(total=60),
            )  # fmt: skip
            body = await answer.read()
            assert answer.status == 200, (answer.status, body)
            return ProgressReply.from_json(body)

    async def token(self, name: str) -> str:
        """As the kubelet projects it into the head's pod."""
        pod = await self.kube.get(PODS, self.namespace, f"{name}-head")
        account = pod["spec"]["serviceAccountName"]
        bound = {"kind": "Pod", "apiVersion": "v1", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": [AUDIENCE], "expirationSeconds": 600, "boundObjectRef": bound},
        }
        path = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/{account}/token"
        answer = await self.kube.post(path, request)
        return str(answer["status"]["token"])


def mounted_config_map(head: Object) -> str:
    """Name of the ConfigMap with the stage config in a head's pod spec."""
    (config,) = [v for v in head["volumes"] if v["name"] == "config"]
    (source,) = [s["configMap"] for s in config["projected"]["sources"] if "configMap" in s]
    return str(source["name"])


def child(owner: Object, name: str) -> Object:
    """Metadata of an object that an owner controls, with the owner's labels."""
    meta = owner["metadata"]
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": meta["name"], "uid": meta["uid"],
                 "controller": True}  # fmt: skip
    return {
        "name": name,
        "namespace": meta["namespace"],
        "labels": meta.get("labels", {}),
        "ownerReferences": [reference],
    }


def dump(obj: Object) -> str:
    """An object for a failure's message."""
    return json.dumps(obj, indent=1, default=str)[:6000]
