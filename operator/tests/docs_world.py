"""A shell for the docs' commands, and what a page may ask to find before them on the test's API server.

The shell stands in a folder that shows the repository and takes what commands write. What others would have installed
stays small: Kueue's and the Prometheus operator's kinds are known by name and keep whatever they are given.
"""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import s3_server
from crd_serving import established
from docs_fences import ROOT
from loop_world import let_runs_go
from played_run import NAMESPACES, PlayedRun
from waits import eventually

from deepcoder_contracts.api import run, sandboxpool
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import CRDS, RUNS, SECRETS, Resource

COMMAND_SECONDS = 120
RELEASE = "deepcoder"
_SECRETS = ("s3", "deepcoder-s3")
"""Names by which runs of the examples, of the docs and the played one know their keys."""

_FOREIGN = {
    "monitoring.coreos.com/v1": ("PodMonitor", "ServiceMonitor", "PrometheusRule"),
    "kueue.x-k8s.io/v1beta2": ("ResourceFlavor", "ClusterQueue", "LocalQueue", "Workload"),
}
_OF_CLUSTER = ("ResourceFlavor", "ClusterQueue")


@dataclass(frozen=True)
class Shell:
    """A folder in which commands are typed."""

    directory: Path
    environment: dict[str, str]
    seconds: float = COMMAND_SECONDS
    """Longest time of a script."""

    def must(self, script: str, where: str = "given") -> str:
        """What it prints, as it stands; a command in it that fails ends it, and it must succeed."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=self.directory, env=self.environment,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=self.seconds, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (
            f"{where}: $ {script}\nexit code {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
        assert "Traceback" not in done.stderr, done.stderr[-3000:]
        return done.stdout


def shell(directory: Path, programs: list[Path], seconds: float = COMMAND_SECONDS, **environment: str) -> Shell:
    """One whose PATH has the programs, the virtual environment's and this machine's."""
    for path in ROOT.iterdir():
        if path.name not in (".git", "build", "out"):
            (directory / path.name).symlink_to(path)
    home = directory / "home"
    home.mkdir()
    folders = [str(p.parent) for p in programs] + [str(Path(sys.executable).parent), os.environ["PATH"]]
    own = {"PATH": ":".join(folders), "HOME": str(home), "COLUMNS": "110", "LC_ALL": "C.UTF-8"}
    return Shell(directory, own | environment, seconds)


@dataclass
class DocsWorld:
    """The API server behind the shell, and the run that was played on it; no operator is left to take up others."""

    shell: Shell
    played: PlayedRun

    def give(self, what: str) -> None:
        """Have there what a page asks for."""
        word, _, rest = what.partition(" ")
        known: dict[str, Callable[[str], Coroutine[Any, Any, None]]] = {
            "installed": self._installed,
            "uninstalled": self._uninstalled,
            "namespace": self._namespace,
            "no-namespace": self._no_namespace,
            "no-runs": self._no_runs,
            "run": self._run,
            "kinds": self._kinds,
        }
        assert word in known, f"nobody can give `{what}`: there are {', '.join(known)}"
        self.played.call(known[word](rest))

    @property
    def kube(self) -> Kube:
        """The administrator's client."""
        return self.played.cluster.kube

    async def _installed(self, _: str) -> None:
        if not await self._is_installed():
            await self._typed(f"helm install {RELEASE} helm/deepcoder-operator -n {RELEASE} --create-namespace")

    async def _uninstalled(self, _: str) -> None:
        """Without its hooks, which are Jobs: there is no node. CRDs stay, and the next release takes them over."""
        if await self._is_installed():
            await self._typed(f"helm uninstall {RELEASE} -n {RELEASE} --no-hooks")
        owner = {"meta.helm.sh/release-name": RELEASE, "meta.helm.sh/release-namespace": RELEASE}
        ours = {"metadata": {"labels": {"app.kubernetes.io/managed-by": "Helm"}, "annotations": owner}}
        for resource in (run.RESOURCE, sandboxpool.RESOURCE):
            await self.kube.patch(CRDS, None, f"{resource.plural}.deepcoder.dev", ours)

    async def _is_installed(self) -> bool:
        """As helm knows it: by a Secret for each revision."""
        found, _ = await self.kube.list(SECRETS, RELEASE)
        return any(secret["metadata"]["name"].startswith(f"sh.helm.release.v1.{RELEASE}.") for secret in found)

    async def _namespace(self, name: str) -> None:
        """With Secrets for the bucket."""
        if await self.kube.find(NAMESPACES, None, name) is None:
            await self.kube.post(NAMESPACES.path(None), {"kind": "Namespace", "metadata": {"name": name}})
        data = {"AWS_ACCESS_KEY_ID": s3_server.ACCESS, "AWS_SECRET_ACCESS_KEY": s3_server.SECRET}
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
        for secret in _SECRETS:
            meta = {"name": secret, "namespace": name}
            await self.kube.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": encoded})

    async def _no_namespace(self, name: str) -> None:
        if await self.kube.find(NAMESPACES, None, name) is not None:
            await self.kube.delete(NAMESPACES, None, name)
            await eventually(f"namespace {name} is gone", lambda: self._absent(NAMESPACES, None, name))

    async def _no_runs(self, namespace: str) -> None:
        await self._namespace(namespace)
        await let_runs_go(self.kube, namespace)

    async def _run(self, address: str) -> None:
        """The played run as it stands, under another address."""
        namespace, _, name = address.partition("/")
        await self._namespace(namespace)
        if await self.kube.find(RUNS, namespace, name) is not None:
            await self.kube.delete(RUNS, namespace, name)
            await eventually(f"{address} is gone", lambda: self._absent(RUNS, namespace, name))
        played = await self.played.cluster.run()
        copy = {key: played[key] for key in ("apiVersion", "kind", "spec")}
        await self.kube.create(copy | {"metadata": {"name": name, "namespace": namespace}})
        await self.kube.patch(RUNS, namespace, name, {"status": played["status"]}, "status")

    async def _kinds(self, group: str) -> None:
        """Those of another project, by name alone, unless it is there itself."""
        for api_version, kinds in _FOREIGN.items():
            for kind in kinds if api_version.startswith(group) else ():
                crd = _crd(*api_version.split("/"), kind)
                if await self.kube.find(CRDS, None, crd["metadata"]["name"]) is None:
                    await self.kube.create(crd)
                    await established(self.kube, crd["metadata"]["name"])

    async def _absent(self, resource: Resource, namespace: str | None, name: str) -> bool:
        return await self.kube.find(resource, namespace, name) is None

    async def _typed(self, script: str) -> None:
        await asyncio.to_thread(self.shell.must, script)


def _crd(group: str, version: str, kind: str) -> dict[str, Any]:
    singular = kind.lower()
    plural = f"{singular}s"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    unprotected = {"api-approved.kubernetes.io": "unapproved, for tests"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}", "annotations": unprotected},
        "spec": {
            "group": group,
            "names": {"kind": kind, "plural": plural, "singular": singular, "listKind": f"{kind}List"},
            "scope": "Cluster" if kind in _OF_CLUSTER else "Namespaced",
            "versions": [{"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }  # fmt: skip
