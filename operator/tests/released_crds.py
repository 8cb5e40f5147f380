"""The CRDs of the release before, as they were served (without descriptions), and how an API server gets them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from run_manifests import run_manifest
from waits import WAIT_SECONDS

from deepcoder_contracts.api import run, sandboxpool
from deepcoder_contracts.api.schema import custom_resource_definition
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import RUNS

_FOLDER = Path(__file__).resolve().parent / "released"


def released() -> dict[str, Any]:
    """By name."""
    return {crd["metadata"]["name"]: crd for crd in map(_read, _FOLDER.glob("*.yaml"))}


def _read(path: Path) -> Any:
    return yaml.load(path.read_text(), yaml.CSafeLoader)


def current() -> dict[str, Any]:
    """Those of this source, by name."""
    made = [custom_resource_definition(resource) for resource in (run.RESOURCE, sandboxpool.RESOURCE)]
    return {crd["metadata"]["name"]: crd for crd in made}


@asynccontextmanager
async def before_the_upgrade(kube: Kube, namespace: str) -> AsyncIterator[None]:
    """Serve the CRDs of the release before; this source's again afterwards, whatever happened."""
    try:
        await serve(kube, namespace, released(), newer=False)
        yield
    finally:
        await serve(kube, namespace, current(), newer=True)


async def serve(kube: Kube, namespace: str, crds: dict[str, Any], *, newer: bool) -> None:
    """Serve these CRDs; `newer` says whether they are this source's."""
    for crd in crds.values():
        await kube.apply(crd)
    async with asyncio.timeout(WAIT_SECONDS):
        while await _is_newer(kube, namespace) != newer:
            await asyncio.sleep(0.1)


async def _is_newer(kube: Kube, namespace: str) -> bool:
    """Whether both `uri` and `curation` are refused: the release before knows no `curation` and drops it."""
    name = f"which-release-{uuid.uuid4().hex[:8]}"
    both = {"uri": "/data/train.jsonl", "curation": {"inputs": [{"name": "set", "uri": "/data/set.jsonl"}]}}
    try:
        await kube.create(run_manifest(namespace, name, dataset=both))
    except errors.Invalid:
        return True
    await kube.delete(RUNS, namespace, name)
    return False
