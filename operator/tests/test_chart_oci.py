"""The chart as an OCI artifact: pushed to a real registry, pulled as it was, and installed from there.

The registry is CNCF Distribution, built by `python -m devcluster build --with registry`; skipped where it is not.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import Resource
from devcluster import doctor
from devcluster.artifacts import Artifacts
from devcluster.config import cache_root

pytestmark = [pytest.mark.apiserver, pytest.mark.long]

READY_SECONDS = 30.0
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")


@dataclass(frozen=True)
class Registry:
    """A registry on loopback, and helm with settings of its own, which no user's get into."""

    address: str
    helm_program: str
    home: Path

    def helm(self, *arguments: str | Path) -> str:
        """What helm answers; fails with its words."""
        own = {f"HELM_{kind}_HOME": str(self.home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        done = subprocess.run(
            [self.helm_program, *map(str, arguments)],
            env=os.environ | own,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def registry(helm: str, tmp_path: Path, unused_tcp_port_factory: Callable[[], int]) -> Iterator[Registry]:
    program = Artifacts(cache_root(), doctor.go_version()).directory("registry") / "registry"
    if not program.exists():
        pytest.skip("the registry has not been built: run `python -m devcluster build --with registry`")
    port = unused_tcp_port_factory()
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
    config = {"version": 0.1, "storage": storage, "http": {"addr": f"127.0.0.1:{port}", "secret": "of this test"}}
    (tmp_path / "registry.yaml").write_text(yaml.safe_dump(config))
    with (tmp_path / "registry.log").open("wb") as log:
        process = subprocess.Popen([program, "serve", tmp_path / "registry.yaml"], stdout=log, stderr=log)
    try:
        end = time.monotonic() + READY_SECONDS
        while not _answers(f"http://127.0.0.1:{port}/v2/"):
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError((tmp_path / "registry.log").read_text())
            time.sleep(0.1)
        yield Registry(f"127.0.0.1:{port}", helm, tmp_path / "helm")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


async def test_the_chart_is_pushed_pulled_and_installed_from_a_registry(
    registry: Registry, chart: Path, kube: Kube, kubeconfig: Path, namespace: str, tmp_path: Path
) -> None:
    version = yaml.safe_load((chart / "Chart.yaml").read_text())["version"]
    registry.helm("package", chart, "-d", tmp_path)
    package = tmp_path / f"deepcoder-operator-{version}.tgz"
    said = registry.helm("push", package, f"oci://{registry.address}/charts", "--plain-http")
    digest = re.findall(r"sha256:[0-9a-f]{64}", said)[-1]

    (tmp_path / "pulled").mkdir()  # helm makes no folder
    address = f"oci://{registry.address}/charts/deepcoder-operator"
    registry.helm("pull", address, "--version", version, "--plain-http", "-d", tmp_path / "pulled")
    (pulled,) = (tmp_path / "pulled").glob("*.tgz")
    assert hashlib.sha256(pulled.read_bytes()).digest() == hashlib.sha256(package.read_bytes()).digest()

    values = ["--set", "crds.install=false,web.enabled=true"]  # CRDs are the session's, for all tests
    from_folder = registry.helm("template", "deepcoder", chart, *values)
    from_registry = registry.helm("template", "deepcoder", address, "--version", version, "--plain-http", *values)
    assert [*yaml.safe_load_all(from_registry)] == [*yaml.safe_load_all(from_folder)]

    shown = registry.helm("show", "chart", f"{address}@{digest}", "--plain-http")
    assert yaml.safe_load(shown)["version"] == version

    release = f"r-{uuid.uuid4().hex[:8]}"
    where = ["--namespace", namespace, "--kubeconfig", kubeconfig]
    registry.helm("install", release, address, "--version", version, "--plain-http", *where, *values)
    try:
        made = await kube.get(DEPLOYMENTS, namespace, f"{release}-deepcoder-operator")
        assert made["metadata"]["labels"]["helm.sh/chart"] == f"deepcoder-operator-{version}"
        registry.helm("upgrade", release, address, "--version", version, "--plain-http", *where, "--reuse-values")
    finally:
        registry.helm("uninstall", release, "--no-hooks", *where)  # there is no node to run the hook on
    assert await kube.find(DEPLOYMENTS, namespace, f"{release}-deepcoder-operator") is None
