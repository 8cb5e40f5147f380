"""Judges that the API server refuses (a quota, an admission policy): said in the status, and not asked in a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from deepcoder_operator.board import ProgressBoard
from deepcoder_operator.builders.pool import PoolSettings
from deepcoder_operator.controllers.pool import pool_group
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.informer import Informer
from deepcoder_operator.kube.resources import PODS
from deepcoder_operator.sandbox.reconciler import PoolReconciler

SETTINGS = PoolSettings("sandbox:1", "deepcoder", {}, "deepcoder.dev/run")


class API:
    """Takes pods until the quota is used up, and counts what it is asked."""

    def __init__(self) -> None:
        self.quota = 0
        self.tries = self.lists = 0
        self.forbidden = ""
        self.pods: list[dict[str, Any]] = []

    async def find(self, *_: Any) -> None:
        return None

    async def apply(self, obj: dict[str, Any]) -> dict[str, Any]:
        return obj

    async def list(self, *_: Any) -> tuple[list[dict[str, Any]], str]:
        self.lists += 1
        return list(self.pods), "1"

    async def create(self, obj: dict[str, Any]) -> dict[str, Any]:
        if obj["kind"] == self.forbidden:
            raise errors.Forbidden(f"may not create {obj['kind']}", 403)
        if obj["kind"] != "Pod":
            return obj
        self.tries += 1
        if len(self.pods) >= self.quota:
            raise errors.Forbidden("exceeded quota: pods", 403)
        meta = obj["metadata"] | {
            "uid": obj["metadata"]["name"], "resourceVersion": "2", "creationTimestamp": "2026-01-01T00:00:00Z"
        }  # fmt: skip
        self.pods.append(obj | {"metadata": meta, "status": {}})
        return self.pods[-1]

    async def patch(self, _: Any, __: Any, ___: Any, patch: dict[str, Any], ____: Any) -> dict[str, Any]:
        return {"status": patch["status"]}


class Ground:
    """A pool that wants many judges, and a clock that the test moves."""

    def __init__(self) -> None:
        self.api, self.now = API(), 1000.0
        api: Any = self.api
        pods = Informer(api, PODS, "", lambda obj: None, index=pool_group)
        clock: Callable[[], float] = lambda: self.now  # noqa: E731
        self.reconciler = PoolReconciler(
            api, pods, ProgressBoard(), SETTINGS, lambda *a, **k: None, clock=clock, wall=clock
        )
        meta = {"name": "judges", "namespace": "ml", "uid": "p", "generation": 1, "resourceVersion": "1"}
        self.pool: dict[str, Any] = {"metadata": meta, "spec": {"minReplicas": 40, "maxReplicas": 40}}

    async def passes(self, seconds: int) -> None:
        """A pass each second."""
        for _ in range(seconds):
            await self.reconciler.reconcile(self.pool)
            self.now += 1

    def accepted(self) -> tuple[str, str]:
        conditions = self.pool["status"]["conditions"]
        found = next(c for c in conditions if c["type"] == "Accepted")
        return found["status"], found["reason"]


@pytest.fixture
def ground() -> Ground:
    return Ground()


async def test_refused_judges_are_tried_again_after_growing_pauses(ground: Ground) -> None:
    await ground.passes(120)
    assert ground.api.tries < 100, "forty judges each second for two minutes would be 4800"
    assert ground.api.lists < 15


async def test_refusal_is_said_as_long_as_judges_are_missing_for_it(ground: Ground) -> None:
    for _ in range(20):
        await ground.passes(1)
        assert ground.accepted() == ("False", "PodRefused"), "between two tries, too"
    ground.api.quota = 40
    await ground.passes(61)
    assert len(ground.api.pods) == 40
    assert ground.accepted() == ("True", "Valid")


async def test_refusal_is_forgotten_when_no_judge_is_missing_any_more(ground: Ground) -> None:
    ground.api.quota = 3
    await ground.passes(5)
    assert ground.accepted() == ("False", "PodRefused")
    ground.pool["spec"] = {"minReplicas": 3, "maxReplicas": 3, "scaling": {"stabilizationSeconds": 0}}
    await ground.passes(5)
    assert ground.accepted() == ("True", "Valid")


async def test_what_surrounds_judges_and_may_not_be_made_is_said_too(ground: Ground) -> None:
    ground.api.forbidden = "Secret"
    with pytest.raises(errors.Forbidden):
        await ground.passes(1)
    assert ground.accepted() == ("False", "Forbidden")
    ground.api.forbidden, ground.api.quota = "", 40
    await ground.passes(2)
    assert ground.accepted() == ("True", "Valid")
