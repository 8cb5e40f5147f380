"""Judges that the API server refuses (a quota, an admission policy): said in the status, and not asked in a loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from deepcoder_operator.board import ProgressBoard
from deepcoder_operator.builders.pool import PoolSettings
from deepcoder_operator.controllers.pool import PoolController, pool_group
from deepcoder_operator.domain.world import pool_view
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.informer import Informer
from deepcoder_operator.kube.resources import PODS, POOLS
from deepcoder_operator.sandbox import judges as judges_module
from deepcoder_operator.sandbox.capacity import CapacityPoller
from deepcoder_operator.sandbox.judges import Judges
from deepcoder_operator.sandbox.reconciler import PoolReconciler
from deepcoder_operator.sandbox.support import PoolSupport

SETTINGS = PoolSettings("sandbox:1", "deepcoder", {}, "deepcoder.dev/run")


AWAY = errors.WebhookAway('failed calling webhook "sidecars"', 500)


class API:
    """Takes pods until the quota is used up, and counts what it is asked."""

    def __init__(self) -> None:
        self.quota = 0
        self.tries = self.lists = 0
        self.forbidden = ""
        self.refusal: errors.KubeError = errors.Forbidden("it may not be made", 403)
        self.pods: list[dict[str, Any]] = []
        self.pool: dict[str, Any] = {}

    async def find(self, *_: Any) -> None:
        return None

    async def apply(self, obj: dict[str, Any]) -> dict[str, Any]:
        return obj

    async def list(self, *_: Any) -> tuple[list[dict[str, Any]], str]:
        self.lists += 1
        return list(self.pods), "1"

    async def create(self, obj: dict[str, Any]) -> dict[str, Any]:
        if obj["kind"] == self.forbidden:
            raise self.refusal
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
        return self.pool | {"status": patch["status"]}


class Ground:
    """A pool that wants many judges, and a clock that the test moves."""

    def __init__(self) -> None:
        self.api, self.now = API(), 1000.0
        api: Any = self.api
        pods = Informer(api, PODS, "", lambda obj: None, index=pool_group)
        clock: Callable[[], float] = lambda: self.now  # noqa: E731
        self.reconciler = PoolReconciler(
            kube=api,
            judges=Judges(api, pods, SETTINGS, CapacityPoller(clock)),
            support=PoolSupport(api, SETTINGS, clock),
            board=ProgressBoard(),
            record=lambda *a, **k: None,
            clock=clock,
            wall=clock,
        )
        meta = {"name": "judges", "namespace": "ml", "uid": "p", "generation": 1, "resourceVersion": "1"}
        self.pool: dict[str, Any] = {"metadata": meta}
        self.edit(minReplicas=40, maxReplicas=40)

    def edit(self, **spec: Any) -> None:
        """Another spec is another generation."""
        self.pool["spec"] = spec
        self.pool["metadata"] = self.pool["metadata"] | {"generation": self.pool["metadata"]["generation"] + 1}
        self.api.pool = {"metadata": self.pool["metadata"], "spec": spec}

    async def passes(self, seconds: int) -> None:
        """A pass each second."""
        for _ in range(seconds):
            await self.reconciler.reconcile(self.pool)
            self.now += 1

    def said(self, kind: str) -> tuple[str, str]:
        found = next(c for c in self.pool["status"]["conditions"] if c["type"] == kind)
        return found["status"], found["reason"]

    def accepted(self) -> tuple[str, str]:
        return self.said("Accepted")


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
    ground.edit(minReplicas=3, maxReplicas=3, scaling={"stabilizationSeconds": 0})
    await ground.passes(5)
    assert ground.accepted() == ("True", "Valid")


async def test_judges_that_a_webhook_keeps_away_are_said_and_come_when_it_is_back(ground: Ground) -> None:
    ground.api.forbidden, ground.api.refusal, ground.api.quota = "Pod", AWAY, 40
    await ground.passes(2)
    assert ground.accepted() == ("False", "PodRefused")
    ground.api.forbidden = ""
    await ground.passes(10)
    assert ground.accepted() == ("True", "Valid")


@pytest.mark.parametrize("refusal", [errors.Forbidden("it may not be made", 403), AWAY], ids=lambda e: type(e).__name__)
async def test_what_surrounds_judges_and_may_not_be_made_is_said_too(ground: Ground, refusal: errors.KubeError) -> None:
    ground.api.forbidden, ground.api.refusal = "Secret", refusal
    with pytest.raises(type(refusal)):
        await ground.passes(1)
    assert ground.accepted() == ("False", type(refusal).__name__)
    ground.api.forbidden, ground.api.quota = "", 40
    await ground.passes(2)
    assert ground.accepted() == ("True", "Valid")


async def test_new_pool_of_which_no_judge_can_be_made_is_not_ready_for_having_been_scaled_to_zero(
    ground: Ground,
) -> None:
    """Runs ask for no GPU while their pool says that somebody has to mend it; of an idle one they would."""
    ground.edit(minReplicas="many")
    await ground.passes(2)
    assert ground.said("Ready") == ("False", "InvalidSpec")
    assert pool_view(ground.pool).unmended == "InvalidSpec"


async def test_idle_pool_is_built_once_and_anew_when_its_spec_changes(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand pools at rest are looked at two hundred times a second."""
    built: list[int] = []
    build = judges_module.build_pod_template

    def counting(*arguments: Any) -> dict[str, Any]:
        built.append(1)
        return build(*arguments)

    monkeypatch.setattr(judges_module, "build_pod_template", counting)
    ground.api.quota = 40
    await ground.passes(20)
    assert len(built) == 1
    ground.edit(minReplicas=40, maxReplicas=41)
    await ground.passes(2)
    assert len(built) == 2


async def test_worker_of_a_pool_that_breaks_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kube:
        async def list(self, resource: Any, *_: Any, **__: Any) -> tuple[list[dict[str, Any]], str]:
            meta = {"name": "judges", "namespace": "ml", "uid": "p", "generation": 1, "resourceVersion": "1"}
            return [{"metadata": meta}] if resource is POOLS else [], "1"

        async def watch(self, *_: Any) -> AsyncIterator[Any]:
            await asyncio.Event().wait()
            yield

    class Reconciler:
        async def close(self) -> None:
            return None

    async def broken(*_: Any) -> None:
        raise RuntimeError("a defect")

    kube: Any = Kube()
    make: Any = lambda pods: Reconciler()  # noqa: E731
    controller = PoolController(kube, ProgressBoard(), make)
    monkeypatch.setattr(controller, "_pass", broken)
    controller.start()
    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.timeout(5):
            await controller.run()
    assert raised.group_contains(RuntimeError, match="a defect")
