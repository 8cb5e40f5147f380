"""Objects as large as etcd stores them: read one at a time, kept without what is too large, and told so.

Whoever may create a run may fill its templates. Parsed, such a run is twenty-five times its JSON.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import AsyncIterator, Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
from aiohttp import web
from plan_world import UID
from pool_passes import Harness as PoolHarness
from run_harness import Harness, manifest, progressing, running_controller

from deepcoder_contracts.api.run import FINALIZER
from deepcoder_operator.controllers.slim_answers import slim_answers
from deepcoder_operator.controllers.watch import _settings
from deepcoder_operator.kube.access import Access
from deepcoder_operator.kube.answers import event_of
from deepcoder_operator.kube.cache_transform import trim_for_cache
from deepcoder_operator.kube.client import PAGE, Kube
from deepcoder_operator.kube.oversize import MOST_FINALIZERS, why_unread
from deepcoder_operator.kube.page import parse_page
from deepcoder_operator.kube.resources import PODS, POOLS, RUNS
from deepcoder_operator.kube.session import UNBOUNDED, open_session

VALUES = 100_000
"""Empty maps in a large run: as many as take seven megabytes. etcd would store four times as many."""

PARSED_BYTES = 7_000_000


def run(junk: Any, name: str = "demo", **metadata: Any) -> dict[str, Any]:
    made = manifest(**metadata)
    made["metadata"]["name"] = name
    resources = {"head": {"template": {"spec": {"junk": junk}}}}
    made["spec"]["stages"] = [made["spec"]["stages"][0] | {"resources": resources}]
    return made


def large(name: str = "demo", **metadata: Any) -> dict[str, Any]:
    return run([{}] * VALUES, name, **metadata)


def page(*objects: dict[str, Any]) -> bytes:
    return json.dumps({"kind": "DeepCoderRunList", "items": objects, "metadata": {"resourceVersion": "7"}}).encode()


async def test_listed_runs_are_parsed_one_by_one_and_nothing_large_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    data = page(*(large(f"r{i}") for i in range(8)))
    kube = Kube(Access("http://nobody.invalid"))

    async def answer(*_: Any, **__: Any) -> bytes:
        return data

    monkeypatch.setattr(kube, "_answer", answer)
    tracemalloc.start()
    items, _ = await kube.list(RUNS, keep=partial(trim_for_cache, RUNS))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [i["metadata"]["name"] for i in items] == [f"r{i}" for i in range(8)]
    assert all(why_unread(i) for i in items)
    assert kept < 200_000
    assert peak < 2 * PARSED_BYTES + len(data)


@pytest.mark.parametrize(
    ("junk", "bound"),
    [
        ([{}] * 10_001, "more than 10000 values"),
        ({f"k{i}": 0 for i in range(10_001)}, "more than 10000 values"),
        ("x" * (401 << 10), "more than 400 KiB of text"),
        ({"x" * (401 << 10): 0}, "more than 400 KiB of text"),
    ],
)
def test_spec_beyond_a_bound_is_not_kept_and_the_bound_is_named(junk: Any, bound: str) -> None:
    whole = run(junk) | {"status": {"ordinal": 3}}
    kept = trim_for_cache(RUNS, whole)
    assert "spec" not in kept
    assert (kept["status"], kept["metadata"]["uid"]) == ({"ordinal": 3}, UID)
    assert bound in (why_unread(kept) or "")
    assert trim_for_cache(RUNS, kept) == kept
    mended = trim_for_cache(RUNS, manifest(), kept)
    assert why_unread(mended) is None
    assert mended["spec"] == manifest()["spec"]


def test_spec_within_the_bounds_is_kept_and_so_is_who_manages_a_larger_one() -> None:
    assert trim_for_cache(RUNS, run([{}] * 9_000))["spec"]["stages"][0]["resources"]["head"]["template"]
    theirs = large()
    theirs["spec"]["managedBy"] = "other.example/controller"
    assert trim_for_cache(RUNS, theirs)["spec"] == {"managedBy": "other.example/controller"}


def test_of_very_many_labels_owners_and_finalizers_those_are_kept_that_are_read() -> None:
    label, owner = {"deepcoder.dev/run": "demo"}, {"kind": "RayCluster", "uid": "c", "controller": True}
    others = [f"f/{i}" for i in range(1000)]
    pod = {
        "metadata": {
            "name": "p",
            "labels": {f"l{i}": "x" for i in range(1000)} | label,
            "ownerReferences": [{"kind": "Pod", "uid": str(i)} for i in range(1000)] + [owner],
            "finalizers": [*others, FINALIZER],
        }
    }
    kept = trim_for_cache(PODS, pod)["metadata"]
    assert kept["labels"] == label
    assert kept["ownerReferences"] == [owner]
    assert kept["finalizers"] == [FINALIZER, *others[: MOST_FINALIZERS - 1]]
    ours = {"metadata": {"labels": {f"deepcoder.dev/{i}": "x" for i in range(1000)}}}
    assert len(trim_for_cache(PODS, ours)["metadata"]["labels"]) == 200


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("items", [None, [], [{}], [{"a": [1, "]"]}, {"b": {}}]])
def test_page_is_what_any_parser_reads(items: Any, indent: int | None) -> None:
    whole = {"kind": "L", "items": items, "metadata": {"continue": "x"}}
    assert parse_page(json.dumps(whole, indent=indent).encode(), lambda item: item) == whole


@pytest.mark.parametrize("data", [b"", b"<html>", b"[]", b'{"items": [', b'{"items": [{}', b'{"items": []', b"\xff"])
def test_page_that_is_none_is_an_error_of_its_value(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_page(data, lambda item: item)


def test_event_is_reduced_before_it_is_passed_on() -> None:
    line = json.dumps({"type": "MODIFIED", "object": large()}).encode()
    kind, kept = event_of(line, partial(trim_for_cache, RUNS))
    assert kind == "MODIFIED"
    assert why_unread(kept)


async def test_kopf_gets_neither_a_list_nor_an_event_with_a_large_run(unused_tcp_port: int) -> None:
    small = manifest()
    events = [{"type": "ADDED", "object": large()}, {"type": "ADDED", "object": small}]
    told = "".join(json.dumps(e) + "\n" for e in events).encode()

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=told if "watch" in request.query else page(large(), small))

    app = web.Application()
    app.router.add_get(RUNS.path(None), answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    url = f"http://127.0.0.1:{unused_tcp_port}{RUNS.path(None)}"
    try:
        async with open_session(Access(url), UNBOUNDED, also=[slim_answers]) as session:
            async with session.get(url) as response:
                listed = (await response.json(content_type=None))["items"]
            async with session.get(url, params={"watch": "true"}) as response:
                lines = b"".join([chunk async for chunk in response.content.iter_chunked(1 << 20)]).splitlines()
    finally:
        await runner.cleanup()
    heard = [json.loads(line)["object"] for line in lines]
    for cut, whole in (listed, heard):
        assert why_unread(cut)
        assert cut["metadata"]["uid"] == UID
        assert whole == small
    assert _settings().watching.chunk_size == PAGE


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    async with running_controller() as made:
        yield made


def seen(harness: Harness, obj: dict[str, Any]) -> None:
    harness.controller.seen(harness.api.change(obj))


@pytest.mark.parametrize("live", [True, False])
async def test_run_that_is_too_large_is_told_so_and_its_attempt_goes_on(harness: Harness, live: bool) -> None:
    attempt = {"attempt": {"ordinal": 1}} if live else {}
    seen(harness, large() | {"status": attempt})
    await harness.until(lambda: harness.api.writes)
    assert progressing(harness.api) == ("False", "SpecUnreadable")
    said = harness.api.writes[0]["status"]["conditions"][0]["message"]
    assert said.startswith("spec holds more than 10000 values")
    assert "make its templates smaller" in said
    assert ("its attempt continues by itself" in said) == live
    assert harness.events == ["SpecUnreadable"]
    assert harness.executor.done == []


async def test_run_that_is_too_large_can_be_deleted(harness: Harness) -> None:
    seen(harness, large(deletionTimestamp="2026-01-01T00:00:00Z"))
    await harness.until(lambda: harness.executor.released)
    assert harness.executor.released == [UID]


def unreadable(made: dict[str, Any]) -> dict[str, Any]:
    made["spec"]["newerField"] = 1
    return made


@pytest.mark.parametrize("make", [large, lambda **meta: unreadable(manifest(**meta))])
@pytest.mark.parametrize("metadata", [{}, {"deletionTimestamp": "2026-01-01T00:00:00Z"}])
async def test_run_of_another_controller_is_left_alone_even_if_its_spec_cannot_be_read(
    harness: Harness, make: Callable[..., dict[str, Any]], metadata: dict[str, str]
) -> None:
    theirs = make(**metadata)
    theirs["spec"]["managedBy"] = "other.example/controller"
    passes: list[float] = []
    reconcile = harness.controller._reconciler.reconcile

    async def counted(*arguments: Any) -> float:
        passes.append(await reconcile(*arguments))
        return passes[-1]

    harness.controller._reconciler.reconcile = counted
    seen(harness, theirs)
    await harness.until(lambda: passes)
    assert (harness.api.writes, harness.events, harness.executor.released) == ([], [], [])


async def test_pool_that_is_too_large_is_refused_and_its_judges_stay() -> None:
    harness = PoolHarness()
    harness.api.quota = 40
    await harness.passes(3)
    judges = len(harness.api.pods)
    harness.edit(minReplicas=40, maxReplicas=40, template={"spec": {"junk": [{}] * VALUES}})
    harness.pool = trim_for_cache(POOLS, deepcopy(harness.pool))
    await harness.passes(1)
    assert harness.accepted() == ("False", "InvalidTemplate")
    assert "more than 10000 values" in str(harness.pool["status"])
    assert len(harness.live()) == judges > 0
