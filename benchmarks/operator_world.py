"""Where `operator_scale.py` measures: real API, etcd and S3 servers, and three processes beside them.

The operator runs under the ServiceAccount that the chart makes, with its rights and the configuration that the chart
writes; the stand-in (`operator_standin.py`) plays KubeRay, the kubelet and the trainers. Pods are objects that nobody
runs. Every wait here has a bound and says what it waited for.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "operator" / "tests"))
import api_audit
import chart_account
import control_plane
import known_kinds
import s3_server
from free_ports import free_port
from run_manifests import run_manifest

from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.errors import KubeError
from deepcoder_operator.kube.resources import POOLS, RAYJOBS, RUNS, SECRETS, Resource
from devcluster import procfs, tools
from devcluster.config import cache_root

NAMESPACES = Resource("", "v1", "namespaces", "Namespace")
HOME = "operator"
TENANTS = 10
POOL = "judges"
WAIT_SECONDS = 120.0
_CHART = Path(__file__).resolve().parents[1] / "helm" / "deepcoder-operator"


@dataclass
class Process:
    """What `/proc` tells of a process of ours."""

    pid: int

    @property
    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @classmethod
    def child(cls, name: str, directory: Path) -> Process:
        """The only child of this process that runs a program with this name on files of `directory`."""
        pids = [int(p) for file in Path("/proc/self/task").glob("*/children") for p in file.read_text().split()]
        (found,) = [
            pid
            for pid in pids
            if (line := procfs.command_line(pid)) and Path(line[0]).name == name and str(directory) in " ".join(line)
        ]
        return cls(found)

    def megabytes(self, what: str) -> float:
        """VmRSS or VmHWM."""
        found = re.search(rf"^{what}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1]) / 1024


@dataclass
class World:
    """The servers, and the processes that are started on them."""

    kube: Kube
    kubeconfig: Path
    directory: Path
    account: chart_account.Account
    s3: s3_server.S3Server
    port: int
    health_port: int
    operator: asyncio.subprocess.Process | None = None
    ended: int = 0
    """How often the operator has ended by itself: it does when it cannot renew its Lease for 8 s."""
    rayjobs: dict[tuple[str, str], float] = field(default_factory=dict)
    """When each RayJob was seen on a watch, by namespace and run."""
    phases: dict[tuple[str, str], str] = field(default_factory=dict)
    """Phase of each run, from a watch: whoever asked the operator all the time would measure its answers."""

    _keeper: asyncio.Task[None] | None = None
    _earlier_cpu: float = 0.0

    @property
    def cpu_seconds(self) -> float:
        """The operator's, of all its lives since `start_operator`."""
        assert self.operator is not None
        return self._earlier_cpu + Process(self.operator.pid).cpu_seconds

    @property
    def server_cpu_seconds(self) -> float:
        """The API server's, since its start."""
        return Process.child("kube-apiserver", self.directory).cpu_seconds

    def requests(self) -> Counter[str]:
        """What the operator has asked the API server for so far, by verb and kind, without watches."""
        asked = api_audit.requests(self.kubeconfig, self.account.user)
        return Counter(f"{r.verb} {r.rights[0].resource}" for r in asked if r.verb != "watch")

    def megabytes(self, what: str) -> float:
        """VmRSS or VmHWM of the operator."""
        assert self.operator is not None
        return Process(self.operator.pid).megabytes(what)

    async def start_operator(self) -> None:
        """Start it, and anew whenever it ends by itself, as a kubelet does."""
        await self._launch()
        self._earlier_cpu = 0.0
        self._keeper = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            assert self.operator is not None
            before = _reaped_cpu()
            await self.operator.wait()
            self.ended += 1
            self._earlier_cpu += _reaped_cpu() - before
            await self._launch()

    async def _launch(self) -> None:
        config = self.account.config | {"healthPort": self.health_port, "images": {"trainer": "trainer:1"}}
        config["progress"] |= {"url": f"https://localhost:{self.port}", "port": self.port}
        path = self.directory / "operator.yaml"
        path.write_text(yaml.safe_dump(config))
        environment = os.environ | {"KUBECONFIG": str(self.account.kubeconfig), "POD_NAME": "operator-0"}
        self.operator = await self._spawn(
            "operator", ["-m", "deepcoder_operator", "run", "--config", str(path)], environment
        )

    async def kill_operator(self) -> None:
        """kill -9."""
        assert self.operator is not None
        assert self._keeper is not None
        self._keeper.cancel()
        if self.operator.returncode is None:
            self.operator.send_signal(signal.SIGKILL)
        await self.operator.wait()

    async def standin(self, *options: str) -> asyncio.subprocess.Process:
        """Start the stand-in."""
        script = str(Path(__file__).with_name("operator_standin.py"))
        return await self._spawn("standin", [script, *options], os.environ | {"KUBECONFIG": str(self.kubeconfig)})

    async def _spawn(self, name: str, arguments: list[str], environment: dict[str, str]) -> asyncio.subprocess.Process:
        with (self.directory / f"{name}.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable, *arguments, env=environment, stdout=asyncio.subprocess.PIPE if "--beats" in arguments
                else log, stderr=log, preexec_fn=control_plane._die_with_parent,
            )  # fmt: skip

    async def metrics(self) -> dict[str, float]:
        """The operator's metrics, series by name with labels; nothing while it does not answer."""
        found: dict[str, float] = {}
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
                session.get(f"http://127.0.0.1:{self.health_port}/metrics") as answer,
            ):
                for line in (await answer.text()).splitlines():
                    if not line.startswith("#"):
                        name, _, value = line.rpartition(" ")
                        found[name] = float(value)
        except (aiohttp.ClientError, TimeoutError):
            return {}
        return found

    async def ready(self) -> bool:
        """Whether the operator says that it is."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
                session.get(f"http://127.0.0.1:{self.health_port}/readyz") as answer,
            ):
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def until(self, what: str, holds: Callable[[], Awaitable[bool]], every: float = 0.2) -> None:
        """Wait until something holds."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    if await holds():
                        return
                    await asyncio.sleep(every)
        except TimeoutError:
            log = (self.directory / "operator.log").read_text(errors="replace")[-3000:]
            raise RuntimeError(f"waited {WAIT_SECONDS:.0f} s in vain for: {what}\n{log}") from None

    async def apply_run(self, index: int, *, own_pool: bool = False) -> float:
        """Apply a run; when its POST was sent."""
        namespace = tenant(index)
        s3 = {"bucket": s3_server.BUCKET, "endpoint": self.s3.endpoint, "credentialsSecretRef": {"name": "s3"}}
        sandbox: dict[str, Any] = {"template": {"maxReplicas": 2}} if own_pool else {"poolRef": {"name": POOL}}
        sent = time.monotonic()
        await self.kube.create(run_manifest(namespace, run_name(index), checkpoint={"s3": s3}, sandbox=sandbox))
        return sent

    async def watch(self) -> None:
        """Note when each RayJob appears and the phase that each run is in, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(RAYJOBS, self._job_seen))
            group.create_task(self._follow(RUNS, self._run_seen))

    async def _follow(self, kind: Resource, seen: Callable[[Object], None]) -> None:
        """A watch that breaks is begun anew: until it is, nothing here sees what the operator has done."""
        while True:
            try:
                found, version = await self.kube.list(kind)
                for obj in found:
                    seen(obj)
                while True:
                    async for what, obj in self.kube.watch(kind, None, "", version):
                        version = obj["metadata"]["resourceVersion"]
                        if what in ("ADDED", "MODIFIED"):
                            seen(obj)
            except KubeError as e:
                print(f"watch of {kind.plural} is begun anew: {e}", file=sys.stderr, flush=True)
                await asyncio.sleep(1)

    def _job_seen(self, job: Object) -> None:
        key = (job["metadata"]["namespace"], job["metadata"]["labels"]["deepcoder.dev/run"])
        self.rayjobs.setdefault(key, time.monotonic())

    def _run_seen(self, obj: Object) -> None:
        key = (obj["metadata"]["namespace"], obj["metadata"]["name"])
        self.phases[key] = (obj.get("status") or {}).get("phase", "")

    async def versions(self) -> dict[tuple[str, str], str]:
        """The version of each run."""
        found, _ = await self.kube.list(RUNS, keep=lambda o: o["metadata"])
        return {(m["namespace"], m["name"]): m["resourceVersion"] for m in found}

    async def running(self, count: int) -> bool:
        """Whether so many runs are Running."""
        return sum(phase == "Running" for phase in self.phases.values()) >= count


def _reaped_cpu() -> float:
    """CPU seconds of processes of ours that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tenant(index: int) -> str:
    """Namespace of a run."""
    return f"team-{index % TENANTS}"


def run_name(index: int) -> str:
    """Its name."""
    return f"run-{index:04d}"


@asynccontextmanager
async def world(directory: Path, growth_percent: int) -> AsyncIterator[World]:
    """All servers with our kinds and KubeRay's, the tenants' namespaces, Secrets and pools; no operator yet.

    By how much the API server's heap may grow before it is looked through for garbage is part of its speed.
    """
    programs, s3_program = control_plane.programs(), s3_server.program()
    if programs is None or s3_program is None:
        raise SystemExit("the API and S3 servers have not been built: run `python -m devcluster build`")
    async with AsyncExitStack() as stack:
        kubeconfig = stack.enter_context(known_kinds.running(directory, programs, growth_percent=growth_percent))
        s3 = stack.enter_context(s3_server.running(directory, s3_program))
        os.environ["KUBECONFIG"] = str(kubeconfig)
        kube = await Kube.connect()
        stack.push_async_callback(kube.close)
        await _namespace(kube, HOME)
        helm = shutil.which("helm") or str(tools.fetch(cache_root()) / "helm")
        objects = chart_account.render(helm, _CHART, HOME)
        account = await stack.enter_async_context(chart_account.account(kube, kubeconfig, objects, HOME, directory))
        for index in range(TENANTS):
            await _tenant(kube, index, (directory / "pki" / "ca.crt").read_text())
        port, health_port = free_port(), free_port()
        made = World(kube, kubeconfig, directory, account, s3, port, health_port)
        watch = asyncio.create_task(made.watch())
        try:
            yield made
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            if made.operator is not None:
                await made.kill_operator()


async def _namespace(kube: Kube, name: str) -> None:
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    await kube.post(NAMESPACES.path(None), body)


async def _tenant(kube: Kube, index: int, authority: str) -> None:
    """A namespace with a Secret of its own, so that each tenant has an S3 client of its own, and a shared pool."""
    name = tenant(index)
    await _namespace(kube, name)
    values = {
        "AWS_ACCESS_KEY_ID": s3_server.ACCESS,
        "AWS_SECRET_ACCESS_KEY": s3_server.SECRET,
        "ca.crt": f"{authority}# {name}\n",
    }
    data = {k: base64.b64encode(v.encode()).decode() for k, v in values.items()}
    secret: Object = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3", "namespace": name}, "data": data}
    await kube.post(SECRETS.path(name), secret)
    spec = {"replicas": 0, "minReplicas": 0, "scaling": {"mode": "External"}}
    pool = {
        "apiVersion": POOLS.api_version,
        "kind": POOLS.kind,
        "metadata": {"name": POOL, "namespace": name},
        "spec": spec,
    }
    await kube.create(pool)


async def beats(world: World, seconds: float, step_seconds: float) -> dict[str, Any]:
    """Have every head report for a while; what they were answered."""
    process = await world.standin("--beats", str(seconds), "--port", str(world.port), "--step", str(step_seconds))
    async with asyncio.timeout(seconds + WAIT_SECONDS):
        output, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError((world.directory / "standin.log").read_text(errors="replace")[-3000:])
    found: dict[str, Any] = json.loads(output)
    return found
