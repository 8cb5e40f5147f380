"""Waiting for the API server to serve a CRD that was just made: it answers 404 for its objects until then."""

from __future__ import annotations

import asyncio
from typing import Any

from waits import WAIT_SECONDS

from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import CRDS


async def established(client: Kube, crd: str) -> None:
    """Wait until the API server serves a CRD."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            status = (await client.get(CRDS, None, crd)).get("status") or {}
            conditions: dict[str, Any] = {c["type"]: c["status"] for c in status.get("conditions") or ()}
            if conditions.get("Established") == "True":
                return
            await asyncio.sleep(0.1)
