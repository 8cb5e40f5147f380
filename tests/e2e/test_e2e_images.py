"""The images when they run: no process is root, nothing is writable, and each holds its own bill of materials."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from e2e_world import TIMEOUT, World, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SECONDS = 120
LOOK = """
import json, os, pathlib, subprocess, sys
from importlib import metadata

(file,) = pathlib.Path("/usr/share/sbom").iterdir()
sbom = json.loads(file.read_bytes())
listed = {(c["name"].lower().replace("_", "-").replace(".", "-"), c["version"]) for c in sbom["components"]}

def name(distribution):
    return distribution.metadata["Name"].lower().replace("_", "-").replace(".", "-")

found = {(name(d), d.version) for d in metadata.distributions()}
packages = subprocess.run(
    ["dpkg-query", "--show", "--showformat", "${Package}\\t${Version}\\n"], capture_output=True, text=True, check=True
)
debian = {tuple(line.split("\\t")) for line in packages.stdout.splitlines()}
known = {(c["name"], c["version"]) for c in sbom["components"] if c.get("purl", "").startswith("pkg:deb/")}
print(json.dumps({
    "image": sbom["metadata"]["component"]["name"],
    "distributions": len(found),
    "without licence": sorted(c["name"] for c in sbom["components"] if not c.get("licenses")),
    "missing": sorted(map(list, found - listed)) + sorted(map(list, debian - known)),
    "packages": len(debian),
    "user": os.getuid(),
    "tools": [t for t in ("pip", "setuptools", "wheel") if t in {n for n, _ in found}],
    "sources": os.path.exists("/src"),
    "writable": [p for p in ("/", "/opt/venv", "/usr", "/etc") if os.access(p, os.W_OK)],
}))
"""


@pytest.fixture(params=["operator", "sandbox", "trainer"])
def said(request: pytest.FixtureRequest, world: World) -> Iterator[dict[str, Any]]:
    """What a pod of the image sees, under the restricted standard but with a writable root file system, so that only
    file owners protect files."""
    name = f"e2e-image-{request.param}"
    container = {
        "name": "look",
        "image": getattr(world.cluster.images, request.param),
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", LOOK],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": security,
        "containers": [container],
    }
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    world.core.create_namespaced_pod(world.namespace, body, _request_timeout=TIMEOUT)

    def phase() -> str:
        return str(world.core.read_namespaced_pod(name, world.namespace, _request_timeout=TIMEOUT).status.phase)

    try:
        wait_until(f"{name} has looked", lambda: phase() in ("Succeeded", "Failed"), SECONDS, phase)
        log = world.core.read_namespaced_pod_log(
            name, world.namespace, _request_timeout=TIMEOUT, _preload_content=False
        )
        text = log.data.decode()
        assert phase() == "Succeeded", text
        yield {"part": request.param, **json.loads(text)}
    finally:
        world.kill_pod(name)


def test_an_image_lists_all_that_is_in_it_and_runs_as_nobody_in_particular(said: dict[str, Any]) -> None:
    assert said["image"] == f"deepcoder-{said['part']}"
    assert said["missing"] == []
    assert said["distributions"] > 10 and said["packages"] > 50  # noqa: PT018
    assert said["user"] == 1000
    assert said["writable"] == []
    assert not said["sources"]
    assert said["tools"] == (["pip", "setuptools"] if said["part"] == "trainer" else [])
