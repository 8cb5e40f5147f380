"""The operator as a process of its own against a real API server and a real S3 server; KubeRay's part is played.

What is shown here: the whole loop, `kill -9` in mid-run, drain through a real progress reply, deletion that leaves
nothing, wrong credentials, and that a run at rest is not written to.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import s3_server
import yaml
from crd_serving import established
from kuberay_standin import Standin, dump
from run_manifests import EVALUATE, LONGER, TRAIN, run_manifest

from deepcoder_contracts.progress import Desired
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import CONFIGMAPS, EVENTS, NETWORK_POLICIES, PODS, POOLS, RAYJOBS, RUNS, SECRETS
from deepcoder_operator.kube.resources import CRDS as CRD_RESOURCE
from devcluster import doctor
from devcluster.artifacts import Artifacts
from devcluster.config import cache_root

pytestmark = [pytest.mark.apiserver, pytest.mark.s3]

WAIT_SECONDS = 60.0


@dataclass
class Cluster:
    """A namespace with everything in it, and the operator's process."""

    kube: Kube
    namespace: str
    s3: s3_server.S3Server
    standin: Standin
    directory: Path
    kubeconfig: Path
    port: int
    health_port: int
    process: asyncio.subprocess.Process | None = None
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    async def start_operator(self) -> None:
        """Start the operator's process."""
        config = {
            "namespace": self.namespace,
            "healthPort": self.health_port,
            "progress": {"url": f"https://localhost:{self.port}", "port": self.port},
            "images": {"trainer": "trainer:1"},
        }
        path = self.directory / "operator.yaml"
        path.write_text(yaml.safe_dump(config))
        environment = os.environ | {"KUBECONFIG": str(self.kubeconfig)}
        log = (self.directory / "operator.log").open("ab")
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "deepcoder_operator", "run", "--config", str(path), "--log-level", "debug",
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
        log.close()

    async def probe(self, path: str) -> tuple[int, str]:
        """What the kubelet is answered; 0 while nobody listens."""
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{self.health_port}/{path}") as answer,
            ):
                return answer.status, await answer.text()
        except aiohttp.ClientError as e:
            return 0, str(e)

    async def ready(self) -> bool:
        return (await self.probe("readyz"))[0] == 200

    async def kill_operator(self) -> None:
        """kill -9."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def create_run(self, **spec: Any) -> Object:
        """Apply a run that uses the S3 server."""
        s3 = {"bucket": s3_server.BUCKET, "endpoint": self.s3.endpoint, "credentialsSecretRef": {"name": "s3"}}
        checkpoint = {"s3": s3} | spec.pop("checkpoint", {})
        return await self.kube.create(run_manifest(self.namespace, checkpoint=checkpoint, **spec))

    async def run(self) -> Object:
        return await self.kube.get(RUNS, self.namespace, "demo")

    async def until(self, what: str, holds: Callable[[Object], bool]) -> Object:
        """Wait until the run is as described."""
        run: Object = {}
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    run = await self.run()
                    if holds(run):
                        return run
                    await asyncio.sleep(0.1)
        except TimeoutError:
            log = (self.directory / "operator.log").read_text(errors="replace")[-6000:]
            raise AssertionError(f"never: {what}\n{dump(run.get('status', {}))}\n{log}") from None

    async def until_phase(self, phase: str) -> Object:
        return await self.until(phase, lambda run: run.get("status", {}).get("phase") == phase)

    async def until_running(self, name: str) -> None:
        def runs(run: Object) -> bool:
            attempt = run.get("status", {}).get("attempt") or {}
            return attempt.get("name") == name and attempt.get("state") == "Running"

        await self.until(f"{name} runs", runs)

    async def finish(self, name: str, **metrics: float) -> None:
        """The attempt runs to its stage's end."""
        await self.until_running(name)
        await self.standin.save(name, 20, final=True, **metrics)
        await self.standin.leave(name, 0, "Completed")


async def wait_for(what: str, holds: Callable[[], Awaitable[bool]]) -> None:
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while not await holds():
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"never: {what}") from None


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Any:
    program = s3_server.program()
    if program is None:
        pytest.skip("the S3 server has not been built: run `python -m devcluster build`")
    with s3_server.running(tmp_path_factory.mktemp("s3"), program) as server:
        yield server


@cache
def kuberay_crds() -> list[Object]:
    """KubeRay's own; a megabyte of YAML each."""
    built = Artifacts(cache_root(), doctor.go_version()).directory("kuberay")
    names = ("ray.io_rayjobs.yaml", "ray.io_rayclusters.yaml")
    return [yaml.load(next(built.rglob(n)).read_text(), yaml.CSafeLoader) for n in names]


async def install_kuberay_crds(kube: Kube) -> None:
    for crd in kuberay_crds():
        if await kube.find(CRD_RESOURCE, None, crd["metadata"]["name"]) is None:
            await kube.create(crd)
            await established(kube, crd["metadata"]["name"])


@pytest.fixture
async def cluster(
    kube: Kube,
    namespace: str,
    kubeconfig: Path,
    s3: s3_server.S3Server,
    tmp_path: Path,
    unused_tcp_port_factory: Callable[[], int],
) -> AsyncIterator[Cluster]:
    await install_kuberay_crds(kube)
    await secret(kube, namespace, s3_server.SECRET)
    standin = Standin(kube, namespace, s3)
    ports = unused_tcp_port_factory(), unused_tcp_port_factory()
    made = Cluster(kube, namespace, s3, standin, tmp_path, kubeconfig, *ports)
    made.tasks.append(asyncio.create_task(standin.run()))
    await made.start_operator()
    try:
        yield made
    finally:
        for task in made.tasks:
            task.cancel()
        results = await asyncio.gather(*made.tasks, return_exceptions=True)
        await made.kill_operator()
        errors = [r for r in results if isinstance(r, Exception)]
        assert not errors, errors


async def secret(kube: Kube, namespace: str, password: str) -> None:
    data = {"AWS_ACCESS_KEY_ID": s3_server.ACCESS, "AWS_SECRET_ACCESS_KEY": password}
    encoded = {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}
    meta = {"name": "s3", "namespace": namespace}
    await kube.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": encoded})


async def test_sigterm_ends_the_operator_in_time_and_well(cluster: Cluster) -> None:
    await wait_for("the operator is ready", cluster.ready)
    assert cluster.process is not None
    cluster.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(20):  # well within a pod's grace
        assert await cluster.process.wait() == 0
    assert "Traceback" not in (cluster.directory / "operator.log").read_text()


async def test_operator_is_ready_once_runs_can_be_listed_and_sees_those_of_a_crd_that_came_later(
    cluster: Cluster,
) -> None:
    await cluster.kill_operator()
    crd = f"{RUNS.plural}.{RUNS.group}"
    definition = await cluster.kube.get(CRD_RESOURCE, None, crd)
    await cluster.kube.delete(CRD_RESOURCE, None, crd)

    async def removed() -> bool:
        return await cluster.kube.find(CRD_RESOURCE, None, crd) is None

    await wait_for("the CRD is gone", removed)
    try:
        await cluster.start_operator()

        async def lacks_runs_only() -> bool:
            return (await cluster.probe("readyz")) == (503, "caches: not listed yet: deepcoderruns\n")

        await wait_for("runs cannot be listed", lacks_runs_only)
    finally:
        kept = {"name": crd, "annotations": definition["metadata"].get("annotations", {})}
        await cluster.kube.apply({**definition, "metadata": kept, "status": {}} | {"kind": "CustomResourceDefinition"})
        await established(cluster.kube, crd)
    await wait_for("the operator is ready", cluster.ready)
    await cluster.create_run(stages=[TRAIN])
    await cluster.until_running("demo-s0-a1")


async def test_outage_of_the_api_server_is_outlived_by_the_same_process(cluster: Cluster) -> None:
    await cluster.kill_operator()
    config = json.loads(cluster.kubeconfig.read_text())
    server = config["clusters"][0]["cluster"]
    wire = Wire(urlsplit(server["server"]).port or 0)
    cluster.kubeconfig = cluster.directory / "kubeconfig"
    await wire.connect()
    server["server"] = f"https://127.0.0.1:{wire.port}"
    cluster.kubeconfig.write_text(json.dumps(config))
    await cluster.start_operator()
    await wait_for("the operator is ready", cluster.ready)
    await wire.cut()
    await cluster.create_run(stages=[TRAIN])
    await asyncio.sleep(5)
    assert (await cluster.probe("healthz"))[0] == 200
    await wire.connect()
    await cluster.until_running("demo-s0-a1")
    assert cluster.process is not None
    assert cluster.process.returncode is None
    await wire.cut()


@dataclass
class Wire:
    """A TCP connection to the API server that can be cut, with all that runs over it, and mended."""

    target: int
    port: int = 0
    server: asyncio.Server | None = None
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def connect(self) -> None:
        self.server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        assert self.server is not None
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        self.writers |= {writer, back}
        await asyncio.gather(self._copy(reader, back), self._copy(there, writer))
        self.writers -= {writer, back}

    async def _copy(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                to.write(data)
                await to.drain()
        to.close()


async def test_run_goes_from_pending_to_complete(cluster: Cluster) -> None:
    await cluster.create_run()
    await cluster.finish("demo-s0-a1")
    await cluster.finish("demo-s1-a2")
    second = await cluster.standin.config("demo-s1-a2")
    assert second.parent is not None
    assert second.parent.uri.endswith("/short/step-000020.a001")
    await cluster.finish("demo-s2-a3", **{"eval/held-back/pass_at_1": 0.5})
    run = await cluster.until_phase("Complete")
    status = run["status"]
    assert [s["phase"] for s in status["stages"]] == ["Complete"] * 3
    assert status["stages"][2]["results"] == {"eval/held-back/pass_at_1": "0.5"}
    assert status["latestCheckpoint"]["parentDigest"] == status["checkpoints"][1]["digest"]
    assert cluster.standin.seen == ["demo-s0-a1", "demo-s1-a2", "demo-s2-a3"]
    jobs, _ = await cluster.kube.list(RAYJOBS, cluster.namespace)
    assert jobs == []

    async def no_pool() -> bool:
        return not (await cluster.kube.list(POOLS, cluster.namespace))[0]

    await wait_for("its own pool is gone", no_pool)
    events, _ = await cluster.kube.list(EVENTS, cluster.namespace)
    reasons = {e["reason"] for e in events if e["regarding"]["name"] == "demo"}
    assert {"AttemptIntended", "AttemptRunning", "CheckpointVerified", "StagePassed", "Completed"} <= reasons


async def test_operator_killed_in_mid_run_goes_on_without_a_duplicate(cluster: Cluster) -> None:
    await cluster.create_run(stages=[TRAIN, LONGER])
    await cluster.until_running("demo-s0-a1")
    await cluster.kill_operator()
    await cluster.standin.save("demo-s0-a1", 20, final=True)
    await cluster.standin.leave("demo-s0-a1", 0, "Completed")
    await cluster.start_operator()
    await cluster.until_running("demo-s1-a2")
    await cluster.kill_operator()
    await cluster.start_operator()
    await cluster.finish("demo-s1-a2")
    await cluster.until_phase("Complete")
    assert cluster.standin.seen == ["demo-s0-a1", "demo-s1-a2"]


async def test_two_operators_side_by_side_take_no_decision_twice(
    cluster: Cluster, unused_tcp_port_factory: Callable[[], int]
) -> None:
    """Nothing but the API server's versions and names stands between them."""
    directory = cluster.directory / "second"
    directory.mkdir()
    ports = {"port": unused_tcp_port_factory(), "health_port": unused_tcp_port_factory()}
    second = replace(cluster, directory=directory, process=None, tasks=[], **ports)
    await second.start_operator()
    try:
        await wait_for("both are ready", lambda: both_ready(cluster, second))
        await cluster.create_run(stages=[TRAIN, LONGER])
        await cluster.until_running("demo-s0-a1")
        await cluster.kube.delete(PODS, cluster.namespace, "demo-s0-a1-head", grace_seconds=0)
        await cluster.finish("demo-s0-a2")
        await cluster.finish("demo-s1-a3")
        run = await cluster.until_phase("Complete")
    finally:
        await second.kill_operator()
    assert cluster.standin.seen == ["demo-s0-a1", "demo-s0-a2", "demo-s1-a3"]
    assert [(s["attempts"], s.get("failures", 0)) for s in run["status"]["stages"]] == [(2, 1), (1, 0)]


async def both_ready(first: Cluster, second: Cluster) -> bool:
    return await first.ready() and await second.ready()


async def test_head_deleted_in_mid_stage_is_followed_by_attempt_2(cluster: Cluster) -> None:
    await cluster.create_run(stages=[TRAIN], failurePolicy={"backoff": {"initialSeconds": 0}})
    await cluster.until_running("demo-s0-a1")
    await cluster.standin.save("demo-s0-a1", 10)
    await cluster.kube.delete(PODS, cluster.namespace, "demo-s0-a1-head", grace_seconds=0)
    await cluster.until_running("demo-s0-a2")
    status = (await cluster.run())["status"]
    assert status["latestCheckpoint"]["step"] == 10
    assert status["stages"][0]["failures"] == 1
    await cluster.finish("demo-s0-a2")
    await cluster.until_phase("Complete")


async def test_suspend_drains_through_the_reply_and_resume_goes_on(cluster: Cluster) -> None:
    await cluster.create_run(stages=[TRAIN])
    await cluster.until_running("demo-s0-a1")
    reply = await cluster.standin.report("demo-s0-a1", cluster.port, 5, reward_mean=0.25)
    assert reply.desired is Desired.RUN
    run = await cluster.until("progress", lambda r: r["status"].get("progress") is not None)
    assert run["status"]["progress"]["display"] == "5/20"
    assert run["status"]["progress"]["reward"] == "0.25"
    await cluster.kube.patch(RUNS, cluster.namespace, "demo", {"spec": {"suspend": True}})
    await cluster.until_phase("Draining")
    reply = await cluster.standin.report("demo-s0-a1", cluster.port, 6)
    assert reply.desired is Desired.DRAIN
    assert reply.deadline_seconds is not None
    await cluster.standin.save("demo-s0-a1", 6)
    await cluster.standin.leave("demo-s0-a1", 75, "Drained")
    run = await cluster.until_phase("Suspended")
    assert run["status"]["latestCheckpoint"]["step"] == 6
    jobs, _ = await cluster.kube.list(RAYJOBS, cluster.namespace)
    assert jobs == []
    await cluster.kube.patch(RUNS, cluster.namespace, "demo", {"spec": {"suspend": False}})
    await cluster.finish("demo-s0-a2")
    await cluster.until_phase("Complete")


async def test_deletion_leaves_nothing_in_the_cluster_and_the_artifacts_as_asked(cluster: Cluster) -> None:
    created = await cluster.create_run(stages=[TRAIN], cleanup={"artifacts": "Delete"}, checkpoint={"drainSeconds": 1})
    await cluster.until_running("demo-s0-a1")
    await cluster.standin.save("demo-s0-a1", 10)
    await cluster.kube.delete(RUNS, cluster.namespace, "demo")

    async def gone() -> bool:
        left = await cluster.kube.find(RUNS, cluster.namespace, "demo")
        for resource in (RAYJOBS, POOLS, NETWORK_POLICIES):
            left = left or (await cluster.kube.list(resource, cluster.namespace))[0]
        maps, _ = await cluster.kube.list(CONFIGMAPS, cluster.namespace, "deepcoder.dev/run")
        return not left and not maps

    await wait_for("everything is gone", gone)
    uid = created["metadata"]["uid"]
    client: Any = cluster.s3.client()
    listed = client.list_objects_v2(Bucket=s3_server.BUCKET, Prefix=f"{cluster.namespace}/demo-{uid[:8]}/")
    assert listed["KeyCount"] == 0


async def test_wrong_credentials_are_said_and_mending_them_starts_the_run(cluster: Cluster) -> None:
    await secret(cluster.kube, cluster.namespace, "wrong")
    await cluster.create_run(stages=[TRAIN])

    def refused(run: Object) -> bool:
        conditions = run.get("status", {}).get("conditions", [])
        return any(c["type"] == "Accepted" and c["reason"] == "CredentialsRefused" for c in conditions)

    run = await cluster.until("CredentialsRefused", refused)
    assert run["status"]["phase"] == "Pending"
    assert cluster.standin.seen == []
    await secret(cluster.kube, cluster.namespace, s3_server.SECRET)
    await cluster.until_running("demo-s0-a1")


async def test_missing_secret_and_missing_bucket_are_told_apart(cluster: Cluster) -> None:
    def reason(run: Object, word: str) -> bool:
        conditions = run.get("status", {}).get("conditions", [])
        return any(c["type"] == "Accepted" and c["reason"] == word for c in conditions)

    await cluster.kube.delete(SECRETS, cluster.namespace, "s3")
    await cluster.create_run(stages=[TRAIN])
    await cluster.until("SecretNotFound", lambda run: reason(run, "SecretNotFound"))
    await cluster.kube.delete(RUNS, cluster.namespace, "demo")
    await wait_for("the run is gone", lambda: _gone(cluster))
    await secret(cluster.kube, cluster.namespace, s3_server.SECRET)
    s3 = {"bucket": "no-such-bucket", "endpoint": cluster.s3.endpoint, "credentialsSecretRef": {"name": "s3"}}
    await cluster.kube.create(run_manifest(cluster.namespace, checkpoint={"s3": s3}))
    await cluster.until("BucketNotFound", lambda run: reason(run, "BucketNotFound"))


async def test_run_with_a_hosted_judge_waits_for_its_key_and_goes_to_its_end_without_a_pool(cluster: Cluster) -> None:
    def accepted(word: str, field: str) -> Callable[[Object], bool]:
        def holds(run: Object) -> bool:
            conditions = run.get("status", {}).get("conditions", [])
            return any(c["type"] == "Accepted" and c["reason"] == word and field in c["message"] for c in conditions)

        return holds

    async def key(**data: str) -> None:
        encoded = {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}
        meta = {"name": "together", "namespace": cluster.namespace}
        await cluster.kube.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": encoded})

    await cluster.create_run(stages=[TRAIN], sandbox={"together": {"credentialsSecretRef": {"name": "together"}}})
    field = "sandbox.together.credentialsSecretRef: Secret together"
    await cluster.until("SecretNotFound", accepted("SecretNotFound", field))
    await key(OTHER="x")
    await cluster.until("CredentialsInvalid", accepted("CredentialsInvalid", f"{field} has no TOGETHER_API_KEY"))
    assert cluster.standin.seen == []
    await key(TOGETHER_API_KEY="tgp_v1_the-key-of-the-team")
    await cluster.until_running("demo-s0-a1")
    assert (await cluster.standin.config("demo-s0-a1")).judge.together is not None
    job = await cluster.kube.get(RAYJOBS, cluster.namespace, "demo-s0-a1")
    maps, _ = await cluster.kube.list(CONFIGMAPS, cluster.namespace)
    log = (cluster.directory / "operator.log").read_text()
    assert "tgp_v1" not in json.dumps([job, maps, await cluster.run()]) + log
    assert (await cluster.kube.list(POOLS, cluster.namespace))[0] == []
    await cluster.finish("demo-s0-a1")
    run = await cluster.until_phase("Complete")
    assert {c["type"]: c["reason"] for c in run["status"]["conditions"]}["SandboxReady"] == "Hosted"


async def _gone(cluster: Cluster) -> bool:
    return await cluster.kube.find(RUNS, cluster.namespace, "demo") is None


async def test_without_kuberay_a_run_says_so_and_can_still_be_deleted(cluster: Cluster) -> None:
    """Nothing of the operator waits for a kind that is not served; it starts without it, too."""
    await cluster.kill_operator()
    for crd in kuberay_crds():
        await cluster.kube.delete(CRD_RESOURCE, None, crd["metadata"]["name"])

    async def removed() -> bool:
        names = [crd["metadata"]["name"] for crd in kuberay_crds()]
        return not any([await cluster.kube.find(CRD_RESOURCE, None, name) for name in names])

    await wait_for("KubeRay's CRDs are gone", removed)
    try:
        await cluster.start_operator()
        await cluster.create_run(stages=[TRAIN])

        def told(run: Object) -> bool:
            conditions = run.get("status", {}).get("conditions", [])
            return any(c["type"] == "Progressing" and c["reason"] == "KubeRayNotFound" for c in conditions)

        await cluster.until("KubeRayNotFound", told)
        await cluster.kube.delete(RUNS, cluster.namespace, "demo")
        await wait_for("the run is gone", lambda: _gone(cluster))
    finally:
        await install_kuberay_crds(cluster.kube)


async def test_operator_template_fields_are_refused_by_name(cluster: Cluster) -> None:
    template = {"spec": {"restartPolicy": "Always"}}
    await cluster.create_run(stages=[TRAIN | {"resources": {"learners": {"template": template}}}])

    def refused(run: Object) -> bool:
        conditions = run.get("status", {}).get("conditions", [])
        return any("resources.learners.template.spec.restartPolicy" in c["message"] for c in conditions)

    await cluster.until("refusal", refused)
    assert cluster.standin.seen == []


async def test_run_at_rest_is_not_written_to(cluster: Cluster) -> None:
    await cluster.create_run(
        stages=[TRAIN, EVALUATE | {"evaluate": EVALUATE["evaluate"] | {"targets": ["Base"]}}], suspend=True
    )

    def rests(run: Object) -> bool:
        conditions = run.get("status", {}).get("conditions", [])
        return any(c["type"] == "Progressing" and c["reason"] == "Suspended" for c in conditions)

    version = (await cluster.until("rest", rests))["metadata"]["resourceVersion"]
    for word in ("once", "twice"):
        await cluster.kube.patch(RUNS, cluster.namespace, "demo", {"metadata": {"labels": {"touched": word}}})
    await cluster.kube.patch(RUNS, cluster.namespace, "demo", {"spec": {"approvedStages": ["short"]}})
    writes = []
    async for kind, run in cluster.kube.watch(RUNS, cluster.namespace, "", version):
        writes.append(kind)
        if run["status"]["observedGeneration"] == 2:
            break
    assert writes == ["MODIFIED"] * 4, "two labels, one spec, and the one status write that says it was seen"
