"""KEDA, the real one, as two processes beside the API server of the tests: its operator and its server of metrics.

The operator has the rights of KEDA's own ClusterRole and no others, the server of metrics those of an administrator.
Their webhooks are not registered. The API server asks for metrics through its aggregator, whose Service names this
machine. Built by `python -m devcluster build --with keda`; tests are skipped where it is not.
"""

from __future__ import annotations

import asyncio
import base64
import ctypes
import json
import os
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import chart_account
import yaml
from crd_serving import established

from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.resources import SERVICE_ACCOUNTS, SERVICES, Resource
from devcluster import doctor
from devcluster.artifacts import Artifacts
from devcluster.config import cache_root
from devcluster.pki import Authority

READY_SECONDS = 90.0
NAMESPACE = "keda"

_RBAC = "rbac.authorization.k8s.io"
_ROLES = Resource(_RBAC, "v1", "clusterroles", "ClusterRole")
_BINDINGS = Resource(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding")
_NAMESPACES = Resource("", "v1", "namespaces", "Namespace")
_API_SERVICES = Resource("apiregistration.k8s.io", "v1", "apiservices", "APIService")
_ACCOUNT, _METRICS = "keda-operator", "keda-metrics-apiserver"
_GROUP, _VERSION = "external.metrics.k8s.io", "v1beta1"


def built() -> Path | None:
    """Where the programs, their CRDs and roles lie, None if they have not been built."""
    directory = Artifacts(cache_root(), doctor.go_version()).directory("keda")
    return directory if directory.exists() else None


@dataclass(frozen=True)
class _Site:
    """What both processes share."""

    kubeconfig: Path
    directory: Path
    built: Path
    keys: Path

    @asynccontextmanager
    async def process(self, program: str, kubeconfig: Path, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """One that runs for as long as the context does."""
        environment = os.environ | {
            "KUBECONFIG": str(kubeconfig),
            "POD_NAMESPACE": NAMESPACE,
            "KEDA_CLUSTER_OBJECT_NAMESPACE": NAMESPACE,  # else it looks for the one of its pod
            "WATCH_NAMESPACE": "",
        }
        with self.log(program).open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                str(self.built / program),
                *options,
                env=environment,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
            )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    def log(self, program: str) -> Path:
        """What it says."""
        return self.directory / f"keda-{program}.log"

    async def answers(self, program: str, process: asyncio.subprocess.Process, url: str) -> None:
        """Wait until it is ready."""
        trust = ssl.create_default_context(cafile=str(self.keys / "ca.crt"))
        try:
            async with asyncio.timeout(READY_SECONDS), aiohttp.ClientSession() as session:
                while process.returncode is None:
                    try:
                        async with session.get(url, ssl=trust) as answer:
                            if answer.status == 200:
                                return
                    except aiohttp.ClientError:
                        pass
                    await asyncio.sleep(0.2)
        except TimeoutError:
            pass
        raise RuntimeError(f"KEDA's {program} is not ready:\n{self.log(program).read_text(errors='replace')[-4000:]}")


@asynccontextmanager
async def running(kube: Kube, kubeconfig: Path, directory: Path, built: Path, ports: list[int]) -> AsyncIterator[None]:
    """Install its CRDs and rights, start both, wait until metrics are served, and end them."""
    await _install(kube, built)
    keys = directory / "keda-keys"
    keys.mkdir()
    served = f"{_METRICS}.{NAMESPACE}.svc"
    Authority(keys, "keda-ca", "ca").issue("tls", "keda", serves=["localhost", "127.0.0.1", served])
    site = _Site(kubeconfig, directory, built, keys)
    own = directory / "keda.kubeconfig"
    own.write_text(
        json.dumps(chart_account.with_token(kubeconfig, await chart_account.token(kube, NAMESPACE, _ACCOUNT)))
    )
    health, grpc, metrics, secure = ports
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(
            site.process(
                "operator",
                own,
                "--enable-prometheus-metrics=false",
                f"--health-probe-bind-address=127.0.0.1:{health}",
                f"--metrics-service-bind-address=127.0.0.1:{grpc}",
                f"--cert-dir={keys}",
            )
        )
        await site.answers("operator", operator, f"http://127.0.0.1:{health}/readyz")
        adapter = await stack.enter_async_context(
            site.process(
                "adapter",
                kubeconfig,
                *(f"--{who}-kubeconfig={kubeconfig}" for who in ("lister", "authentication", "authorization")),
                "--bind-address=127.0.0.1",
                f"--secure-port={secure}",
                f"--port={metrics}",
                f"--metrics-service-address=localhost:{grpc}",
                f"--cert-dir={keys}",
                f"--tls-cert-file={keys}/tls.crt",
                f"--tls-private-key-file={keys}/tls.key",
            )
        )
        await site.answers("adapter", adapter, f"https://127.0.0.1:{secure}/healthz")
        await _aggregate(kube, (keys / "ca.crt").read_bytes(), secure)
        yield


async def _install(kube: Kube, built: Path) -> None:
    await kube.post(_NAMESPACES.path(None), {"metadata": {"name": NAMESPACE}})
    for path in sorted((built / "manifests").glob("*keda.sh_*.yaml")):
        crd = yaml.load(path.read_text(), yaml.CSafeLoader)
        await kube.apply(crd)
        await established(kube, crd["metadata"]["name"])
    await kube.post(SERVICE_ACCOUNTS.path(NAMESPACE), {"metadata": {"name": _ACCOUNT}})
    for role in yaml.safe_load_all((built / "manifests" / "role.yaml").read_text()):
        place = role["metadata"].get("namespace")
        roles, bindings = _ROLES, _BINDINGS
        if place:
            roles = Resource(_RBAC, "v1", "roles", "Role")
            bindings = Resource(_RBAC, "v1", "rolebindings", "RoleBinding")
        await kube.post(roles.path(place), role)
        subject = {"kind": "ServiceAccount", "name": _ACCOUNT, "namespace": NAMESPACE}
        reference = {"apiGroup": _RBAC, "kind": role["kind"], "name": role["metadata"]["name"]}
        binding: Object = {"metadata": {"name": _ACCOUNT}, "roleRef": reference, "subjects": [subject]}
        await kube.post(bindings.path(place), binding)


async def _aggregate(kube: Kube, authority: bytes, port: int) -> None:
    """Have the API server serve the metrics, and wait until it does."""
    service = {"metadata": {"name": _METRICS}, "spec": {"type": "ExternalName", "externalName": "localhost"}}
    await kube.post(SERVICES.path(NAMESPACE), service)
    spec = {
        "group": _GROUP,
        "version": _VERSION,
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
        "service": {"name": _METRICS, "namespace": NAMESPACE, "port": port},
        "caBundle": base64.b64encode(authority).decode(),
    }
    name = f"{_VERSION}.{_GROUP}"
    await kube.post(_API_SERVICES.path(None), {"metadata": {"name": name}, "spec": spec})
    try:
        async with asyncio.timeout(READY_SECONDS):
            while True:
                found = await kube.get(_API_SERVICES, None, name)
                told = [c for c in (found.get("status") or {}).get("conditions") or () if c["type"] == "Available"]
                if told and told[0]["status"] == "True":
                    return
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise RuntimeError(f"the API server does not serve KEDA's metrics: {told}") from None


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
