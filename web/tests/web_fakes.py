"""A page without a cluster or a bucket: who may see what, which runs there are and what is stored is set by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from deepcoder_client.connection import Connection, Kind
from deepcoder_client.errors import ClientError, Unreachable
from deepcoder_contracts.api.run import DeepCoderRun
from deepcoder_web.access import Access
from deepcoder_web.app import Dashboard
from deepcoder_web.runs import Runs

SPEC = yaml.safe_load((Path(__file__).parents[2] / "examples" / "demo.yaml").read_text())["spec"]
TOKENS = {"jane": ["devs"], "jane-again": ["devs"], "stranger": []}


def object_of(name: str = "demo", namespace: str = "team", version: str = "1", **more: Any) -> dict[str, Any]:
    """A run as the API server has it."""
    metadata = {"namespace": namespace, "name": name, "uid": f"uid-{name}", "resourceVersion": version}
    return {"metadata": metadata, "spec": {**SPEC, **more}}


def run_of(name: str = "demo", namespace: str = "team", version: str = "1", endpoint: str = "") -> DeepCoderRun:
    """A run that the operator has accepted."""
    provenance = {
        "storage": f"s3://bucket/{namespace}/{name}", "configDigest": f"sha256:{'0' * 64}", "image": "trainer",
        "model": "hf://m", "operatorVersion": "0",
    }  # fmt: skip
    run = DeepCoderRun.model_validate(object_of(name, namespace, version) | {"status": {"provenance": provenance}})
    if endpoint:
        s3 = run.spec.checkpoint.s3.model_copy(update={"endpoint": endpoint})
        checkpoint = run.spec.checkpoint.model_copy(update={"s3": s3})
        run = run.model_copy(update={"spec": run.spec.model_copy(update={"checkpoint": checkpoint})})
    return run


class ApiServer(Connection):
    """Reviews tokens, and lets those of the group devs read the namespaces that are open."""

    def __init__(self, *namespaces: str) -> None:
        self.open = set(namespaces)
        self.members = {"jane", "jane-again"}
        self.away = False
        self.secret: dict[str, Any] | ClientError = {}
        self.reviews: list[tuple[str, Any]] = []
        self.hold: Callable[[str], None] = lambda plural: None

    def create(
        self, kind: Kind, namespace: str | None, body: dict[str, Any], below: str = "", name: str | None = None
    ) -> dict[str, Any]:
        if self.away:
            raise Unreachable("it does not answer")
        self.reviews.append((kind.plural, body["spec"]))
        self.hold(kind.plural)
        if kind.plural == "tokenreviews":
            token = body["spec"]["token"]
            groups = ["devs"] if token in self.members else []
            extra = {"authentication.kubernetes.io/credential-id": [f"JTI={token}"]}
            user = {"username": token.partition("-")[0], "uid": "7", "groups": groups, "extra": extra}
            return {"status": {"authenticated": token in TOKENS, "user": user}}
        about = body["spec"]["resourceAttributes"]
        allowed = "devs" in body["spec"]["groups"] and about["namespace"] in self.open
        return {"status": {"allowed": allowed}}

    def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any]:
        if isinstance(self.secret, ClientError):
            raise self.secret
        return self.secret


class World:
    """A page with all around it; `now` is the clock of what it remembers of rights."""

    def __init__(self, *namespaces: str, storage: Any = None) -> None:
        self.now = 0.0
        self.server = ApiServer(*(namespaces or ("team",)))
        self.access = Access(self.server, lambda: self.now)
        client: Any = None
        self.runs = Runs(client, ())
        self.dashboard = Dashboard(client, self.access, self.runs, storage)

    def add(self, run: DeepCoderRun) -> None:
        """A run is there, or has changed."""
        self.runs._take("ADDED", run)

    def remove(self, run: DeepCoderRun) -> None:
        """A run is gone."""
        self.runs._take("DELETED", run)


def bearer(token: str = "jane") -> dict[str, str]:
    """The header of a request."""
    return {"Authorization": f"Bearer {token}"}


async def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for something, for half a minute at most."""
    try:
        async with asyncio.timeout(30):
            while not holds():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not in time: {what}") from None
