"""The watch of runs around kopf: what it does when kopf ends, goes deaf, or cannot begin."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import waits
from prometheus_client import REGISTRY

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from virtual_clock import run_virtually

from deepcoder_operator.controllers import watch
from deepcoder_operator.controllers.watch import RunWatch, _KopfThread
from deepcoder_operator.kube import errors
from deepcoder_operator.probes import Probes


class Kopf:
    """Stands where a life of kopf does."""

    lives: list[Kopf]

    def __init__(self, heard: Any, _: Any, namespaces: Any) -> None:
        self.heard, self.ended, self.namespaces = heard, asyncio.Event(), namespaces
        Kopf.lives.append(self)

    def start(self) -> None:
        """Nothing: events are of no interest here."""

    def stop(self) -> None:
        self.ended.set()


def run(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"namespace": "ml", "name": name, "resourceVersion": str(version)}}


class Harness:
    """An API server that may not serve runs, and a controller that is told of them."""

    def __init__(self) -> None:
        self.served, self.lists = True, 0
        self.closed: set[str] = set()
        self.kept: list[list[str]] = []
        self.runs: dict[str, int] = {}
        self.told: list[str] = []
        self.watch: RunWatch | None = None

    async def list(self, _: Any, namespace: str | None, **__: Any) -> tuple[list[dict[str, Any]], str]:
        self.lists += 1
        if namespace in self.closed:
            raise errors.Forbidden("its Role is gone", 403)
        if not self.served:
            raise errors.NotFound("no matches for kind", 404)
        return [run(name, version) for name, version in self.runs.items()], "7"

    def listed(self, runs: Any, version: int, closed: Any) -> None:
        assert version == 7
        self.kept.append(list(closed))

    def seen(self, obj: dict[str, Any]) -> None:
        self.told.append(obj["metadata"]["name"])

    def gone(self, obj: dict[str, Any]) -> None:
        self.told.append("gone " + obj["metadata"]["name"])

    until = staticmethod(waits.until)


@pytest.fixture
async def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    Kopf.lives = []
    monkeypatch.setattr(watch, "_KopfThread", Kopf)
    monkeypatch.setattr(watch, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(watch, "RELIST_SECONDS", 0.02)
    monkeypatch.setattr(watch, "EVENT_SECONDS", 0.1)
    made: Any = Harness()
    made.watch = RunWatch(made, made)
    return made


async def running(harness: Harness) -> asyncio.Task[None]:
    assert harness.watch is not None
    return asyncio.create_task(harness.watch.run())


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_nothing_is_listed_until_the_kind_is_served_and_each_try_shows_life(harness: Harness) -> None:
    harness.served = False
    task = await running(harness)
    await harness.until(lambda: harness.lists > 2)
    assert harness.watch is not None
    assert not harness.watch.listed.is_set()
    assert harness.watch.alive_at > 0
    assert Kopf.lives == []
    probes = Probes({}, harness.watch, asyncio.Event())
    refused = {"watch": "deepcoderruns"}
    assert probes.watches() is None, "no restart would help"
    assert REGISTRY.get_sample_value("deepcoder_operator_watch_refused", refused) == 1, "so somebody has to be told"
    harness.served = True
    await harness.until(lambda: Kopf.lives)
    assert harness.watch.listed.is_set()
    assert REGISTRY.get_sample_value("deepcoder_operator_watch_refused", refused) == 0
    await end(task)
    assert Kopf.lives[0].ended.is_set(), "told to stop with the rest"


async def test_kopf_is_begun_again_after_a_listing_when_it_has_ended(harness: Harness) -> None:
    task = await running(harness)
    await harness.until(lambda: Kopf.lives)
    before = harness.lists
    Kopf.lives[0].ended.set()
    await harness.until(lambda: len(Kopf.lives) == 2)
    assert harness.lists > before
    await end(task)


def test_kopf_that_ends_at_once_each_time_is_begun_again_after_growing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its lives lists all runs twice. In virtual time."""
    begun: list[float] = []

    class Ends(Kopf):
        def start(self) -> None:
            begun.append(asyncio.get_running_loop().time())
            asyncio.get_running_loop().call_later(60 if len(begun) == 7 else 0, self.ended.set)

    async def watched() -> None:
        Kopf.lives = []
        monkeypatch.setattr(watch, "_KopfThread", Ends)
        api: Any = Harness()
        task = asyncio.create_task(RunWatch(api, api).run())
        while len(begun) < 9:
            await asyncio.sleep(1)
        await end(task)

    run_virtually(watched())
    rests = [later - at for at, later in pairwise(begun)]
    assert rests[:6] == [1, 2, 4, 8, 16, 30]
    assert rests[6:] == [61, 2], "it had lived for a minute"


@pytest.mark.parametrize("change", ["a new run", "a newer version", "a deletion"])
async def test_kopf_that_has_gone_deaf_is_begun_again(harness: Harness, change: str) -> None:
    harness.runs = {"demo": 5}
    task = await running(harness)
    await harness.until(lambda: Kopf.lives)
    Kopf.lives[0].heard.seen(run("demo", 5))
    await harness.until(lambda: harness.lists > 4)
    assert len(Kopf.lives) == 1, "listings of what it told leave it alone"
    harness.runs = {"a new run": {"demo": 5, "other": 6}, "a newer version": {"demo": 6}, "a deletion": {}}[change]
    await harness.until(lambda: len(Kopf.lives) == 2)
    assert Kopf.lives[0].ended.is_set()
    assert harness.told == ["demo"]
    await end(task)


async def test_event_that_is_under_way_during_a_listing_is_no_deafness(harness: Harness) -> None:
    harness.runs = {"demo": 5}
    task = await running(harness)
    await harness.until(lambda: Kopf.lives)
    heard = Kopf.lives[0].heard
    heard.seen(run("demo", 5))
    for version in range(6, 12):
        before = harness.lists
        harness.runs = {"demo": version}
        await harness.until(lambda before=before: harness.lists > before)
        heard.seen(run("demo", version))
    before = harness.lists
    harness.runs = {"demo": 12}
    await harness.until(lambda: harness.lists > before)
    heard.gone(run("demo", 13))
    harness.runs = {}
    before = harness.lists
    await harness.until(lambda: harness.lists > before + 2)
    assert len(Kopf.lives) == 1
    await end(task)


async def test_namespace_that_is_closed_holds_up_no_other_and_is_watched_again_once_it_is_open(
    harness: Harness,
) -> None:
    """It was deleted, and its Role with it; or roles are being replaced."""
    harness.watch = RunWatch(harness, harness, ["ours", "theirs"])  # type: ignore[arg-type]
    harness.closed = {"theirs"}
    task = await running(harness)
    await harness.until(lambda: Kopf.lives)
    assert Kopf.lives[0].namespaces == ("ours",)
    assert harness.watch.listed.is_set()
    assert harness.kept[0] == ["theirs"], "what became of its runs nobody knows"
    harness.closed = set()
    await harness.until(lambda: len(Kopf.lives) == 2)
    assert Kopf.lives[0].ended.is_set()
    assert Kopf.lives[1].namespaces == ("ours", "theirs")
    harness.closed = {"ours"}
    await harness.until(lambda: len(Kopf.lives) == 3)
    assert Kopf.lives[2].namespaces == ("theirs",)
    await end(task)


async def test_where_every_namespace_is_closed_nothing_is_watched_and_all_are_asked_for_again(harness: Harness) -> None:
    harness.watch = RunWatch(harness, harness, ["ours"])  # type: ignore[arg-type]
    harness.closed = {"ours"}
    task = await running(harness)
    await harness.until(lambda: harness.lists > 2)
    assert Kopf.lives == [], "no namespaces would be all of them"
    harness.closed = set()
    await harness.until(lambda: Kopf.lives)
    await end(task)


async def test_kopf_that_ends_at_the_moment_it_is_stopped_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread closes its loop while ours tells it to stop: an error here would end the operator."""
    heard: Any = None
    thread = _KopfThread(heard, asyncio.get_running_loop(), ())
    thread._loop.close()
    monkeypatch.setattr(thread._loop, "is_closed", lambda: False)  # a moment before
    thread.stop()


def test_run_that_kopf_has_told_of_is_not_kept_there() -> None:
    raw = run("a", 1) | {"spec": {"stages": []}}
    taken = watch._taken(raw)
    assert taken["spec"] == {"stages": []}
    assert (taken["kind"], taken["metadata"]["name"]) == ("DeepCoderRun", "a")
    assert raw == {}, "what is left of it with kopf"
