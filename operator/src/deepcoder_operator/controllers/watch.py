"""kopf's part: it watches DeepCoderRuns and hands each event to the run controller.

Only a low-level handler is used: it patches nothing, so kopf adds neither annotations nor finalizers of its own, and
a lost or repeated event changes nothing, since the controller is level-triggered.
"""

from __future__ import annotations

import asyncio
from typing import Any

import kopf

from deepcoder_operator.controllers.run import RunController
from deepcoder_operator.kube.resources import RUNS


def registry_for(controller: RunController) -> kopf.OperatorRegistry:
    """kopf's handlers, bound to this controller."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(RUNS.group, RUNS.version, RUNS.plural, registry=registry)
    async def changed(*, event: Any, **_: Any) -> None:
        obj = {"apiVersion": RUNS.api_version, "kind": RUNS.kind, **event["object"]}
        if event["type"] == "DELETED":
            controller.gone(obj)
        else:
            controller.seen(obj)

    return registry


def settings() -> kopf.OperatorSettings:
    """No posting, no scanning for new kinds, no peering; every request and watch bounded."""
    made = kopf.OperatorSettings()
    made.posting.enabled = False
    made.scanning.disabled = True
    made.peering.standalone = True
    made.watching.server_timeout = 300
    made.watching.connect_timeout = 10
    made.networking.request_timeout = 30
    made.networking.connect_timeout = 10
    return made


async def watch_runs(controller: RunController, stop: asyncio.Event) -> None:
    """Watch all namespaces until told to stop."""
    await kopf.operator(
        registry=registry_for(controller), settings=settings(), clusterwide=True, standalone=True, stop_flag=stop
    )
