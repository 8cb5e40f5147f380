"""A namespace of the real API server with an S3 server, KubeRay's part played, and the operator as its own process.

What every test of the operator's whole loop begins from. A wait that fails shows the end of the operator's log, and the
run's status where it waits for that; nothing here waits without a bound.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import s3_server
import yaml
from chart_account import Account
from crd_serving import established
from free_ports import free_port
from kuberay_standin import LOOK_SECONDS, Standin, dump
from operator_template import Forked, Running
from run_manifests import run_manifest
from waits import WAIT_SECONDS, eventually

from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.errors import NotFound
from deepcoder_operator.kube.resources import CRDS, RAYCLUSTERS, RAYJOBS, RUNS
from devcluster import doctor
from devcluster.artifacts import Artifacts
from devcluster.config import cache_root

RENEW_SECONDS = 3600.0
"""Time without a renewal after which a test's operator stops leading."""

_logs: dict[Path, None] = {}
"""Logs of the operators that the running test has started, in order."""


@dataclass
class Cluster:
    """A namespace with everything in it, and the operator's process under the rights that the chart grants.

    One that is started anew has its identity, hence takes its Lease back at once, as a container that starts again.
    Nothing here starts one that ended because the machine stopped it for longer than its Lease allows. Its Lease
    therefore allows more than a test takes, unless the test is about the Lease.
    """

    kube: Kube
    namespace: str
    s3: s3_server.S3Server
    standin: Standin
    directory: Path
    account: Account
    kubeconfig: Path
    port: int
    health_port: int
    identity: str = "operator-a"
    name: str = "demo"
    """Of the run."""
    constants: dict[str, float] = field(default_factory=lambda: {"kube.lease.RENEW_SECONDS": RENEW_SECONDS})
    """Constants of the operator that have other values in its process, by module and name."""
    process: Running | None = None
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    async def start_operator(self, *program: str, **changes: Any) -> None:
        """Start the operator's process: by a command in the place of one that is forked, and with changes to its
        configuration, where given."""
        assert self.process is None or self.process.returncode is not None, "it runs: two would share a port and a name"
        progress = {"url": f"https://localhost:{self.port}", "port": self.port}
        config = self.account.config | {"healthPort": self.health_port, "images": {"trainer": "trainer:1"}}
        config["progress"] |= progress
        path = self.directory / "operator.yaml"
        path.write_text(yaml.safe_dump(config | changes))
        environment = os.environ | {"KUBECONFIG": str(self.kubeconfig), "POD_NAME": self.identity}
        words = ("run", "--config", str(path), "--log-level", "debug")
        written = self.directory / "operator.log"
        _logs[written] = None
        if not program:
            self.process = Forked(words, environment, written, self.constants)
            return
        with written.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, *program, *words, env=environment, stdout=log, stderr=log
            )

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
        """Whether the operator says that it is."""
        return (await self.probe("readyz"))[0] == 200

    async def kill_operator(self) -> None:
        """kill -9, if it runs."""
        if self.process is None:
            return
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def create_run(self, **spec: Any) -> Object:
        """Apply a run that uses the S3 server."""
        s3 = {"bucket": s3_server.BUCKET, "endpoint": self.s3.endpoint, "credentialsSecretRef": {"name": "s3"}}
        checkpoint = {"s3": s3 | spec.pop("s3", {})} | spec.pop("checkpoint", {})
        return await self.kube.create(run_manifest(self.namespace, self.name, checkpoint=checkpoint, **spec))

    async def run(self) -> Object:
        """The run as the API server has it."""
        return await self.kube.get(RUNS, self.namespace, self.name)

    async def until(self, what: str, holds: Callable[[Object], bool]) -> Object:
        """Wait until the run is as described."""
        run: Object = {}
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                run = await self.run()  # with what the test has written just now
                while not holds(run):
                    run = await self.standin.changes.newer(RUNS, run, LOOK_SECONDS) or await self.run()
                return run
        except TimeoutError:
            raise AssertionError(f"never: {what}\n{dump(run.get('status', {}))}\n{_said()}") from None

    async def gone(self) -> bool:
        """Whether the run is deleted."""
        return await self.kube.find(RUNS, self.namespace, self.name) is None

    async def until_phase(self, phase: str) -> Object:
        """Wait for a phase."""
        return await self.until(phase, lambda run: run.get("status", {}).get("phase") == phase)

    async def until_running(self, name: str) -> None:
        """Wait until this attempt's program runs."""

        def runs(run: Object) -> bool:
            attempt = run.get("status", {}).get("attempt") or {}
            return attempt.get("name") == name and attempt.get("state") == "Running"

        await self.until(f"{name} runs", runs)

    async def until_reason(self, condition: str, reason: str) -> Object:
        """Wait until a condition of the run has this reason."""

        def holds(run: Object) -> bool:
            conditions = run.get("status", {}).get("conditions", [])
            return any(c["type"] == condition and c["reason"] == reason for c in conditions)

        return await self.until(f"{condition}: {reason}", holds)

    async def finish(self, name: str, **metrics: float) -> None:
        """The attempt runs to its stage's end."""
        await self.until_running(name)
        await self.standin.save(name, 20, final=True, **metrics)
        await self.standin.leave(name, 0, "Completed")


async def wait_for(what: str, holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something holds."""
    try:
        await eventually(what, holds)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{_said()}") from None


def _said() -> str:
    """The end of each operator's log."""
    return "\n".join(f"{log}:\n{log.read_text(errors='replace')[-6000:]}" for log in _logs if log.exists())


def kuberay_files() -> list[Path]:
    """KubeRay's CRDs of what the operator makes and watches."""
    built = Artifacts(cache_root(), doctor.go_version()).directory("kuberay")
    return [next(built.rglob(name)) for name in ("ray.io_rayjobs.yaml", "ray.io_rayclusters.yaml")]


@cache
def kuberay_crds() -> list[Object]:
    """KubeRay's own, in the version that is asked for: half a megabyte, for which the API server computes a second.

    The other one is taken out of the text: to read it as YAML takes longer than all the rest.
    """
    made = []
    for file in kuberay_files():
        head, versions = file.read_text().split("\n  versions:\n")
        (stored,) = [text for text in re.split(r"(?m)^(?=  - )", versions) if "\n    storage: true\n" in text]
        made.append(yaml.load(f"{head}\n  versions:\n{stored}", yaml.CSafeLoader))
    return made


async def serves_kuberay(kube: Kube) -> bool:
    """Whether KubeRay's kinds are served: their CRDs themselves are a megabyte, too much to be read in each test."""
    try:
        known = await kube.read(f"/apis/{RAYJOBS.api_version}")
    except NotFound:
        return False
    return {RAYJOBS.plural, RAYCLUSTERS.plural} <= {kind["name"] for kind in known["resources"]}


async def install_kuberay_crds(kube: Kube) -> None:
    """Unless they are there."""
    for crd in kuberay_crds():
        if await kube.find(CRDS, None, crd["metadata"]["name"]) is None:
            await kube.create(crd)
            await established(kube, crd["metadata"]["name"])


async def put_secret(kube: Kube, namespace: str, password: str) -> None:
    """The Secret that runs name: right with the S3 server's password, wrong with any other."""
    data = {"AWS_ACCESS_KEY_ID": s3_server.ACCESS, "AWS_SECRET_ACCESS_KEY": password}
    encoded = {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}
    meta = {"name": "s3", "namespace": namespace}
    await kube.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": encoded})


@asynccontextmanager
async def cluster_in(
    kube: Kube,
    account: Account,
    s3: s3_server.S3Server,
    directory: Path,
    port: Callable[[], int],
    namespace: str | None = None,
) -> AsyncIterator[Cluster]:
    """The namespace, the release's unless another is given, made ready, KubeRay's part playing; the operator is not
    started, but ended."""
    namespace = namespace or account.namespace
    if not await serves_kuberay(kube):
        await install_kuberay_crds(kube)
    await put_secret(kube, namespace, s3_server.SECRET)
    standin = Standin(kube, namespace, s3)
    made = Cluster(kube, namespace, s3, standin, directory, account, account.kubeconfig, port(), port())
    made.tasks.append(asyncio.create_task(made.standin.run()))
    try:
        yield made
    finally:
        for task in made.tasks:
            task.cancel()
        results = await asyncio.gather(*made.tasks, return_exceptions=True)
        await made.kill_operator()
        for log in [log for log in _logs if log.is_relative_to(directory)]:
            del _logs[log]
        await let_runs_go(kube, namespace)
        errors = [r for r in results if isinstance(r, Exception)]
        assert not errors, errors


async def let_runs_go(kube: Kube, namespace: str | None) -> None:
    """Delete runs that no operator is left to let go: they would hold up their namespace, and a CRD, for ever."""
    try:
        runs, _ = await kube.list(RUNS, namespace)
    except NotFound:
        return  # the CRD that was to go has gone: no run held it
    for run in runs:
        meta = run["metadata"]
        with suppress(NotFound):
            await kube.delete(RUNS, meta["namespace"], meta["name"])
            await kube.patch(RUNS, meta["namespace"], meta["name"], {"metadata": {"finalizers": []}})


@dataclass
class Wire:
    """A TCP connection to the API server that can be cut, with all that runs over it, and mended."""

    target: int
    port: int = field(default_factory=free_port)
    """Not one of those that the kernel hands out: another program could get it while the wire is cut."""
    server: asyncio.Server | None = None
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def connect(self) -> None:
        self.server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)

    async def cut(self) -> None:
        assert self.server is not None
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        if writer not in self.writers:  # cut before its other half was there
            back.transport.abort()
            return
        self.writers.add(back)
        await asyncio.gather(self._copy(reader, back), self._copy(there, writer))
        self.writers -= {writer, back}

    async def _copy(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                to.write(data)
                await to.drain()
        to.close()
