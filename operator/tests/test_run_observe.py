"""What a pass asks the API server: nothing that makes no difference, since a thousand runs ask it each some seconds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import plan_world
import pytest
from plan_world import START

from deepcoder_operator.api.run import FINALIZER, DeepCoderRun
from deepcoder_operator.board import ProgressBoard
from deepcoder_operator.controllers import observe
from deepcoder_operator.controllers.observe import Children, Observer
from deepcoder_operator.domain.world import Problem, StorageView, World

PROBLEM = Problem("SecretNotFound", "create it")


@dataclass
class API:
    """Has nothing, and counts what is looked for."""

    asked: Counter[str] = field(default_factory=Counter)

    async def find(self, resource: Any, namespace: str, name: str) -> None:
        self.asked[resource.kind] += 1


class Cache:
    def get(self, namespace: str, name: str) -> None:
        return None

    def group(self, key: str) -> list[Any]:
        return []


@dataclass
class Storage:
    problem: Problem | None = None

    async def answer(self, *_: Any) -> StorageView:
        return StorageView(problem=self.problem)


class Ground:
    def __init__(self) -> None:
        self.api, self.storage = API(), Storage()
        api: Any = self.api
        storage: Any = self.storage
        cache: Any = Cache()
        self.observer = Observer(api, Children(cache, cache, cache, cache), ProgressBoard(), storage)

    async def look(self, run: DeepCoderRun) -> World:
        self.api.asked.clear()
        return await self.observer.observe(run, START, None)


@pytest.fixture
def ground() -> Ground:
    return Ground()


def make_run(**spec: Any) -> DeepCoderRun:
    """A run that has its finalizer."""
    run = plan_world.make_run(**spec)
    return run.model_copy(update={"metadata": run.metadata.model_copy(update={"finalizers": [FINALIZER]})})


async def test_run_that_is_seen_for_the_first_time_asks_nothing(ground: Ground) -> None:
    """Its first pass only sees to it that it cannot go unnoticed."""
    world = await ground.look(plan_world.make_run())
    assert world.storage is None
    assert ground.api.asked == {}


async def test_run_whose_bucket_is_not_as_it_should_be_is_looked_for_nowhere_else_but_at_its_pool(
    ground: Ground,
) -> None:
    ground.storage.problem = PROBLEM
    world = await ground.look(make_run())
    assert world.storage is not None
    assert (world.storage.problem, world.refusal) == (PROBLEM, None)
    assert ground.api.asked == {}
    ground.storage.problem = None
    await ground.look(make_run())
    assert ground.api.asked == {"SandboxPool": 1, "ConfigMap": 1, "ServiceAccount": 1, "NetworkPolicy": 1}


async def test_pool_that_a_waiting_run_refers_to_is_looked_for_live(ground: Ground) -> None:
    """It may have been made a moment ago, and the run would say that there is none."""
    ground.storage.problem = PROBLEM
    await ground.look(make_run(sandbox={"poolRef": {"name": "judges"}}))
    assert ground.api.asked == {"SandboxPool": 1}


async def test_suspended_run_asks_nothing(ground: Ground) -> None:
    world = await ground.look(make_run(suspend=True))
    assert world.storage is None
    assert ground.api.asked == {}


async def test_templates_are_built_once_for_each_version_of_the_spec(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []

    def check(run: DeepCoderRun) -> Problem:
        built.append(run.metadata.generation)
        return Problem("TemplateRefused", f"of version {run.metadata.generation}")

    monkeypatch.setattr(observe, "check_templates", check)
    run = make_run()
    for _ in range(3):
        world = await ground.look(run)
        assert world.refusal == Problem("TemplateRefused", "of version 1")
    newer = run.model_copy(update={"metadata": run.metadata.model_copy(update={"generation": 2})})
    assert (await ground.look(newer)).refusal == Problem("TemplateRefused", "of version 2")
    assert built == [1, 2]


async def test_templates_of_many_runs_are_remembered_within_bounds(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "_REMEMBERED", 3)
    run = make_run()
    for number in range(10):
        await ground.look(run.model_copy(update={"metadata": run.metadata.model_copy(update={"uid": f"u{number}"})}))
    assert list(ground.observer._checked) == ["u7", "u8", "u9"]
