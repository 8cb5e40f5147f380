"""API servers that know our kinds and KubeRay's from their start, since they find the CRDs in etcd's data.

To take these in costs an API server five seconds of CPU time, and to find them a tenth of that. The data is made once
for CRDs and programs as they are, by a server that ends in order, and kept in the cache; who is interrupted leaves
none, and the next one makes it. Keys and certificates are each server's own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import control_plane
from crd_serving import established
from loop_world import install_kuberay_crds, kuberay_files
from waits import WAIT_SECONDS

from deepcoder_contracts.api import run, sandboxpool
from deepcoder_contracts.api.schema import custom_resource_definition
from deepcoder_operator.kube import access
from deepcoder_operator.kube.client import Kube
from devcluster.config import cache_root
from devcluster.file_lock import exclusive

_KEPT = 4
"""Of so many checkouts, with CRDs of their own."""


@contextmanager
def running(directory: Path, paths: dict[str, Path], **options: Any) -> Iterator[Path]:
    """As `control_plane.running`."""
    _copy_data(paths, directory / "etcd")
    with control_plane.running(directory, paths, **options) as kubeconfig:
        yield kubeconfig


def _copy_data(paths: dict[str, Path], target: Path) -> None:
    folder = cache_root() / "known-kinds"
    place = folder / _digest(paths)
    with exclusive(folder / "lock", "an API server with CRDs"):
        if not place.exists():
            with tempfile.TemporaryDirectory(dir=folder) as directory:
                with (
                    control_plane.running(Path(directory), paths) as kubeconfig,
                    ThreadPoolExecutor(1) as thread,  # there may be a loop in this one
                ):
                    thread.submit(asyncio.run, _teach(kubeconfig)).result()
                (Path(directory) / "etcd").rename(place)
        os.utime(place)
        for old in sorted(folder.glob("etcd-*"), key=lambda found: found.stat().st_mtime)[:-_KEPT]:
            shutil.rmtree(old)
        shutil.copytree(place, target)


def _digest(paths: dict[str, Path]) -> str:
    ours = [custom_resource_definition(resource) for resource in (run.RESOURCE, sandboxpool.RESOURCE)]
    digest = hashlib.sha256(json.dumps([ours, sorted(map(str, paths.values()))], sort_keys=True).encode())
    for path in kuberay_files():
        digest.update(path.read_bytes())
    return f"etcd-{digest.hexdigest()[:16]}"


async def _teach(kubeconfig: Path) -> None:
    kube = Kube(access.of_kubeconfig(str(kubeconfig)), deadline=WAIT_SECONDS)
    try:
        for resource in (run.RESOURCE, sandboxpool.RESOURCE):
            await kube.apply(custom_resource_definition(resource))
            await established(kube, f"{resource.plural}.deepcoder.dev")
        await install_kuberay_crds(kube)
    finally:
        await kube.close()
