"""Plays KubeRay, the kubelet and the trainers for `operator_scale.py`, in a process of its own.

Every RayJob that appears on a watch gets a RayCluster, a head pod and a worker pod, which are objects that nobody runs,
and the status that KubeRay gives a job whose program runs. With `--beats` each head reports to the operator's real
HTTPS endpoint instead, with a token of its pod's, over a connection that is kept. Nothing is polled. One line of JSON
at the end of `--beats`; ended by SIGTERM otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "operator" / "tests"))
from kuberay_standin import child

from deepcoder_contracts.progress import AUDIENCE, ProgressReport, TrainerPhase
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import CONFIGMAPS, PODS, RAYJOBS, SERVICE_ACCOUNTS

_AT_ONCE = 4
_AGAIN_SECONDS = 1.0
_ADDRESSES = 50
"""Heads report from so many addresses of the loopback network, as they would from as many nodes."""


async def play(kube: Kube) -> None:
    """Start every RayJob that appears, until cancelled. A watch that breaks is begun anew, after a list."""
    jobs: asyncio.Queue[Object] = asyncio.Queue()
    seen: set[str] = set()

    def appears(job: Object) -> None:
        if job["metadata"]["uid"] not in seen:
            seen.add(job["metadata"]["uid"])
            jobs.put_nowait(job)

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(_start_all(kube, jobs))
        while True:
            try:
                found, version = await kube.list(RAYJOBS)
                for job in found:
                    appears(job)
                while True:
                    async for kind, job in kube.watch(RAYJOBS, None, "", version):
                        version = job["metadata"]["resourceVersion"]
                        if kind == "ADDED":
                            appears(job)
            except errors.KubeError as e:
                print(f"watch of {RAYJOBS.plural} is begun anew: {e}", file=sys.stderr, flush=True)
                await asyncio.sleep(_AGAIN_SECONDS)


async def _start_all(kube: Kube, jobs: asyncio.Queue[Object]) -> None:
    while True:
        job = await jobs.get()
        try:
            await _start(kube, job)
        except (errors.NotFound, errors.Conflict) as e:
            print(f"RayJob {job['metadata']['name']} is not started: {e}", file=sys.stderr, flush=True)


async def _start(kube: Kube, job: Object) -> None:
    """What KubeRay, which replaces statuses, and the kubelet, which patches them, write until the program runs."""
    meta, spec = job["metadata"], job["spec"]["rayClusterSpec"]
    body = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": child(job, f"{meta['name']}-c"), "spec": spec}
    cluster = await kube.create(body)
    await _pod(kube, cluster, f"{meta['name']}-head", spec["headGroupSpec"]["template"])
    for number, group in enumerate((spec.get("workerGroupSpecs") or ())[:1]):
        await _pod(kube, cluster, f"{meta['name']}-w{number}", group["template"])
    name, namespace = cluster["metadata"]["name"], meta["namespace"]
    await kube.replace_status(cluster | {"status": {"state": "ready"}})
    status = {
        "jobId": f"{meta['name']}-1",
        "rayClusterName": name,
        "dashboardURL": f"{name}-head-svc.{namespace}.svc.cluster.local:8265",
        "jobStatus": "RUNNING",
        "jobDeploymentStatus": "Running",
        "startTime": _now(),
    }
    await kube.replace_status(job | {"status": status})


async def _pod(kube: Kube, cluster: Object, name: str, template: Object) -> None:
    meta = child(cluster, name) | {"labels": template["metadata"]["labels"]}
    await kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]})
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": _now()}
        for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    ]
    containers = [
        {
            "name": container["name"],
            "ready": True,
            "restartCount": 0,
            "image": container.get("image", ""),
            "imageID": f"registry.example/trainer@sha256:{'0' * 64}",
            "state": {"running": {"startedAt": _now()}},
        }
        for container in template["spec"]["containers"]
    ]
    status = {"phase": "Running", "podIP": "10.0.0.1", "conditions": conditions, "containerStatuses": containers}
    await kube.patch(PODS, meta["namespace"], name, {"status": status}, "status")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def beat(kube: Kube, port: int, every: float, seconds: float, step_seconds: float) -> dict[str, Any]:
    """Have every head report for a while; answers by status, and how many were due."""
    heads, _ = await kube.list(PODS, None, "deepcoder.dev/role=head")
    bundle = (await kube.get(CONFIGMAPS, heads[0]["metadata"]["namespace"], _config(heads[0])))["data"]["ca.crt"]
    limit, answers = asyncio.Semaphore(8), Counter[str]()

    async def token(head: Object) -> str:
        async with limit:
            return await _token(kube, head)

    tokens = await asyncio.gather(*(token(h) for h in heads))
    trust = ssl.create_default_context(cadata=bundle)
    connectors = [
        aiohttp.TCPConnector(local_addr=(f"127.0.1.{i + 1}", 0), limit=0, ssl=trust, keepalive_timeout=600)
        for i in range(_ADDRESSES)
    ]
    sessions = [aiohttp.ClientSession(connector=c, timeout=aiohttp.ClientTimeout(total=20)) for c in connectors]
    began = time.monotonic()

    async def report(index: int) -> None:
        """One head; they begin one after another, so that they do not report in step."""
        await asyncio.sleep(every * index / len(heads))
        while time.monotonic() - began < seconds:
            due = time.monotonic() + every
            step = 1 + int((time.monotonic() - began) / step_seconds)
            code = await _report(sessions[index % _ADDRESSES], port, heads[index], tokens[index], step)
            answers[code] += 1
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    await asyncio.gather(*(report(i) for i in range(len(heads))))
    for session in sessions:
        await session.close()
    return {"heads": len(heads), "answers": dict(answers), "seconds": round(time.monotonic() - began, 1)}


async def _report(session: aiohttp.ClientSession, port: int, head: Object, token: str, step: int) -> str:
    labels = head["metadata"]["labels"]
    body = ProgressReport(
        ordinal=int(labels["deepcoder.dev/ordinal"]), stage="short", phase=TrainerPhase.TRAINING, step=step,
        max_steps=1000, metrics={"reward_mean": 0.5, "truncated_ratio": 0.1}, sent_at=datetime.now(UTC),
    )  # fmt: skip
    url = f"https://localhost:{port}/v1/runs/{head['metadata']['namespace']}/{labels['deepcoder.dev/run']}/progress"
    try:
        async with session.post(url, data=body.to_json(), headers={"Authorization": f"Bearer {token}"}) as answer:
            await answer.read()
            return str(answer.status)
    except (aiohttp.ClientError, TimeoutError) as e:
        return type(e).__name__


def _config(head: Object) -> str:
    """Name of the ConfigMap with a head's stage config."""
    (volume,) = [v for v in head["spec"]["volumes"] if v["name"] == "config"]
    (source,) = [s["configMap"] for s in volume["projected"]["sources"] if "configMap" in s]
    name: str = source["name"]
    return name


async def _token(kube: Kube, head: Object) -> str:
    meta = head["metadata"]
    bound = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]}
    request = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": [AUDIENCE], "expirationSeconds": 3600, "boundObjectRef": bound},
    }
    path = SERVICE_ACCOUNTS.path(meta["namespace"], head["spec"]["serviceAccountName"], "token")
    return str((await kube.post(path, request))["status"]["token"])


async def _main(options: argparse.Namespace) -> int:
    kube = await Kube.connect()
    try:
        if options.beats:
            print(json.dumps(await beat(kube, options.port, options.every, options.beats, options.step)), flush=True)
        else:
            await play(kube)
    finally:
        await kube.close()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beats", type=float, help="report for so many seconds, then end; without it play KubeRay")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two reports of a head")
    parser.add_argument("--step", type=float, default=5.0, help="seconds that a step takes")
    parser.add_argument("--port", type=int, default=8443, help="where the operator takes reports")
    sys.exit(asyncio.run(_main(parser.parse_args())))
