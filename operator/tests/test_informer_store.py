"""What a cache of the API server's objects holds: what is read of them, nothing that is gone, each in its group."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from virtual_clock import run_virtually

from deepcoder_operator.domain.names import LABEL_RUN_UID
from deepcoder_operator.domain.world import cluster_view, pod_view, rayjob_view
from deepcoder_operator.kube import errors
from deepcoder_operator.kube import informer as informers
from deepcoder_operator.kube.access import Access
from deepcoder_operator.kube.cache_transform import trim_for_cache
from deepcoder_operator.kube.client import Kube, Object
from deepcoder_operator.kube.informer import Informer
from deepcoder_operator.kube.resources import PODS, RAYCLUSTERS, RAYJOBS, RUNS
from deepcoder_operator.sandbox.observe import judge_pods

_sleep = asyncio.sleep
OWNER = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "name": "c", "uid": "owner", "controller": True}


def metadata(name: str = "demo", version: int = 1, run: str = "u1", **more: Any) -> Object:
    return {
        "name": name,
        "namespace": "ml",
        "uid": f"uid-{name}",
        "resourceVersion": str(version),
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {LABEL_RUN_UID: run, "deepcoder.dev/ordinal": "3", "deepcoder.dev/role": "head"},
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x" * 5000},
        "managedFields": [{"manager": "kubelet", "fieldsV1": {f"f:{i}": {} for i in range(50)}}],
        "ownerReferences": [OWNER],
    } | more


def pod(name: str = "demo", version: int = 1, run: str = "u1") -> Object:
    """A pod of which everything is said that anybody reads, and much that nobody does."""
    gpus = {"requests": {"nvidia.com/gpu": "4"}, "limits": {"nvidia.com/gpu": "4"}}
    container = {"name": "ray-head", "image": "i", "env": [{"name": "A", "value": "b" * 900}], "resources": gpus}
    status = {
        "name": "ray-head",
        "restartCount": 2,
        "imageID": "registry/i@sha256:1",
        "state": {"terminated": {"reason": "OOMKilled", "exitCode": 137, "finishedAt": "2026-01-01T01:00:00Z",
                                 "message": "too much"}},
        "volumeMounts": [{"name": "v", "mountPath": "/x"}] * 20,
    }  # fmt: skip
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata(
            name, version, run, deletionTimestamp="2026-01-01T02:00:00Z", deletionGracePeriodSeconds=9
        ),
        "spec": {
            "containers": [container],
            "volumes": [{"name": "v"}] * 20,
            "nodeName": "n1",
            "nodeSelector": {"gpu": "h100"},
        },
        "status": {
            "phase": "Failed",
            "reason": "Evicted",
            "message": "the node was low on memory",
            "podIP": "10.0.0.1",
            "conditions": [
                {"type": "Ready", "status": "True"},
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:05Z"},
                {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"},
            ],
            "containerStatuses": [status],
            "initContainerStatuses": [{"name": "init", "state": {"waiting": {"reason": "ImagePullBackOff"}}}],
        },
    }


def judge_that_restarted(*, waits: bool, ready: bool = False) -> Object:
    """Its container waits to be started once more, or has started; what it said is in the state before."""
    last = {"terminated": {"exitCode": 64, "message": "memory limit is 256 MiB: raise the limit"}}
    state = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}} if waits else {"running": {}}
    status = {
        "name": "judge",
        "ready": ready,
        "started": not waits,
        "restartCount": 3,
        "state": state,
        "lastState": last,
    }
    return pod() | {"status": {"phase": "Running", "containerStatuses": [status]}}


def rayjob() -> Object:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata(deletionTimestamp="2026-01-01T02:00:00Z"),
        "spec": {"suspend": True, "rayClusterSpec": {"headGroupSpec": {"template": pod()["spec"]}}},
        "status": {
            "jobStatus": "FAILED",
            "jobDeploymentStatus": "Failed",
            "reason": "AppFailed",
            "message": "it broke",
            "rayClusterName": "c",
            "endTime": "2026-01-01T01:00:00Z",
            "rayClusterStatus": {"desiredCPU": "1", "head": {"podIP": "10.0.0.1"}},
        },
    }


def raycluster() -> Object:
    spec = {"headGroupSpec": {"template": pod()["spec"]}}
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata(), "spec": spec,
            "status": {"state": "ready", "conditions": [{"type": "HeadPodReady"}] * 5 + [
                {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]}}  # fmt: skip


def test_what_is_read_of_a_kept_object_is_what_is_read_of_the_whole_one() -> None:
    assert pod_view(trim_for_cache(PODS, pod())) == pod_view(pod())
    assert rayjob_view(trim_for_cache(RAYJOBS, rayjob())) == rayjob_view(rayjob())
    assert cluster_view(trim_for_cache(RAYCLUSTERS, raycluster())) == cluster_view(raycluster())
    for uid in ("owner", "other"):
        assert judge_pods([trim_for_cache(PODS, pod())], uid) == judge_pods([pod()], uid)
    for waits, ready in ((True, False), (False, False), (False, True)):
        judge = judge_that_restarted(waits=waits, ready=ready)
        assert judge_pods([trim_for_cache(PODS, judge)], "owner") == judge_pods([judge], "owner")
        assert judge_pods([judge], "owner")[0].refuses == waits
    blank = {"metadata": {"name": "demo", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}}
    assert pod_view(trim_for_cache(PODS, blank)) == pod_view(blank)
    assert rayjob_view(trim_for_cache(RAYJOBS, blank)) == rayjob_view(blank)
    assert cluster_view(trim_for_cache(RAYCLUSTERS, blank)) == cluster_view(blank)


def test_a_kept_child_has_a_fraction_of_its_size_and_shares_what_is_equal() -> None:
    for resource, whole in ((PODS, pod()), (RAYJOBS, rayjob()), (RAYCLUSTERS, raycluster())):
        assert len(json.dumps(trim_for_cache(resource, whole))) < len(json.dumps(whole)) / 4
    one, other = (trim_for_cache(PODS, json.loads(json.dumps(pod()))) for _ in range(2))
    assert one["spec"]["nodeSelector"]["gpu"] is other["spec"]["nodeSelector"]["gpu"]


def test_of_a_run_everything_is_kept_but_managed_fields_and_annotations() -> None:
    run = {"metadata": metadata(finalizers=["f"]), "spec": {"a": [1, {"b": "c"}]}, "status": {"ordinal": 3}}
    mine = trim_for_cache(RUNS, run)
    assert (mine["spec"], mine["status"]) == (run["spec"], run["status"])
    assert set(run["metadata"]) - set(mine["metadata"]) == {"annotations", "managedFields"}


class Server:
    """A list and a watch that the test writes; a watch ends when the test says, in `raises` if there is one."""

    def __init__(self) -> None:
        self.items: list[Object] = []
        self.version = 10
        self.lists = self.watches = 0
        self.events: asyncio.Queue[tuple[str, Object] | Exception | None] = asyncio.Queue()

    async def list(self, *_: Any, keep: Any = lambda o: o) -> tuple[list[Object], str]:
        self.lists += 1
        await _sleep(0)
        return [keep(i) for i in self.items], str(self.version)

    async def watch(self, *_: Any) -> AsyncIterator[tuple[str, Object]]:
        self.watches += 1
        while (event := await self.events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def informer(server: Server) -> AsyncIterator[Informer]:
    kube: Any = server
    made = Informer(kube, PODS, "", lambda obj: None, index=lambda o: o["metadata"]["labels"].get(LABEL_RUN_UID))
    task = asyncio.create_task(made.run())
    await made.synced.wait()
    yield made
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def heard(server: Server, *events: tuple[str, Object]) -> None:
    for event in events:
        server.events.put_nowait(event)
    async with asyncio.timeout(60):
        while not server.events.empty():
            await asyncio.sleep(0)
    await asyncio.sleep(0.01)


async def test_object_whose_deletion_was_heard_is_not_put_in_again_by_an_older_answer(
    server: Server, informer: Informer
) -> None:
    """A create's answer, or a live list, may be processed after the watch has told of the deletion."""
    answer = pod("judge", 11)
    await heard(server, ("ADDED", pod("judge", 11)), ("DELETED", pod("judge", 12)))
    informer.observe(answer)
    assert informer.get("ml", "judge") is None
    assert informer.group("u1") == []


async def test_object_that_the_watch_has_not_come_to_is_put_in_by_the_answer(
    server: Server, informer: Informer
) -> None:
    informer.observe(pod("judge", 11))
    assert [p["metadata"]["name"] for p in informer.group("u1")] == ["judge"]
    await heard(server, ("ADDED", pod("judge", 11)), ("DELETED", pod("judge", 12)))
    assert informer.group("u1") == []


async def test_newer_answer_replaces_and_an_older_one_does_not(server: Server, informer: Informer) -> None:
    await heard(server, ("ADDED", pod("judge", 12)))
    informer.observe(pod("judge", 11) | {"spec": {"nodeName": "old"}})
    assert informer.group("u1")[0]["spec"]["nodeName"] == "n1"
    informer.observe(pod("judge", 13) | {"spec": {"nodeName": "new"}})
    assert informer.group("u1")[0]["spec"]["nodeName"] == "new"


async def test_object_whose_label_changes_leaves_its_old_group(server: Server, informer: Informer) -> None:
    await heard(server, ("ADDED", pod("judge", 11)), ("MODIFIED", pod("judge", 12, run="u2")))
    assert informer.group("u1") == []
    assert len(informer.group("u2")) == 1
    await heard(server, ("DELETED", pod("judge", 13, run="u2")))
    assert informer.group("u2") == []


async def test_list_takes_out_what_is_gone_and_leaves_what_was_made_after_it(
    server: Server, informer: Informer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(informers, "FIRST_PAUSE_SECONDS", 0.01)
    await heard(server, ("ADDED", pod("gone", 11)), ("ADDED", pod("stays", 12)))
    server.items, server.version = [pod("stays", 12)], 20
    informer.observe(pod("new", 21))
    server.events.put_nowait(errors.Gone("too old", 410))
    async with asyncio.timeout(60):
        while server.lists < 2 or informer.get("ml", "gone"):
            await asyncio.sleep(0.01)
    assert sorted(p["metadata"]["name"] for p in informer.group("u1")) == ["new", "stays"]


async def test_server_that_says_gone_each_time_is_asked_at_growing_intervals(
    server: Server, informer: Informer, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def note(seconds: float) -> None:
        slept.append(seconds)
        await _sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    for _ in range(6):
        server.events.put_nowait(errors.Gone("too old", 410))
    async with asyncio.timeout(60):
        while server.lists < 7:
            await _sleep(0)
    assert slept == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]


def test_lists_that_take_long_do_not_make_the_pauses_between_them_short_again() -> None:
    """A server that cannot keep up is slow with each list, and says that the watch is too old. In virtual time."""
    told: list[float] = []
    rests: list[float] = []

    class Busy(Server):
        async def list(self, *_: Any, **__: Any) -> tuple[list[Object], str]:
            clock = asyncio.get_running_loop().time
            rests.extend([clock() - told[-1]] if told else [])
            await asyncio.sleep(40)
            told.append(clock())
            return [], "10"

        async def watch(self, *_: Any) -> AsyncIterator[tuple[str, Object]]:
            await asyncio.sleep(45 if len(told) == 7 else 0)
            raise errors.Gone("too old", 410)
            yield

    async def listed() -> None:
        kube: Any = Busy()
        task = asyncio.create_task(Informer(kube, PODS, "", lambda obj: None).run())
        while len(rests) < 8:
            await asyncio.sleep(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run_virtually(listed())
    assert rests[:6] == [1, 2, 4, 8, 16, 30]
    assert rests[6:] == [46, 2], "a watch that lasted is what makes them short"


async def test_store_is_listed_again_now_and_then(
    server: Server, informer: Informer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a watch has told wrongly is mended within the half hour."""
    monkeypatch.setattr(informers, "RELIST_SECONDS", 0.0)
    monkeypatch.setattr(informers, "FIRST_PAUSE_SECONDS", 0.0)
    server.items, server.version = [pod("missed", 15)], 20
    server.events.put_nowait(errors.Gone("begin to count anew", 410))
    async with asyncio.timeout(60):
        while server.lists < 3 or informer.get("ml", "missed") is None:
            server.events.put_nowait(None)
            await asyncio.sleep(0.01)


async def test_namespace_that_is_closed_holds_up_no_other_and_is_seen_once_it_is_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its Role went with it, or is being replaced; where all are watched as one, nothing is known without the right."""
    monkeypatch.setattr(informers, "FIRST_PAUSE_SECONDS", 0.01)
    closed: set[str | None] = {"theirs", None}

    class Closed(Server):
        async def list(
            self, resource: Any, namespace: str | None = None, *_: Any, **__: Any
        ) -> tuple[list[Object], str]:
            if namespace in closed:
                raise errors.Forbidden("no Role", 403)
            name = {"name": f"of-{namespace}", "namespace": namespace}
            return [pod() | {"metadata": metadata() | name}], "10"

    of_two = Informer(Closed(), PODS, "", lambda obj: None, namespaces=["ours", "theirs"])  # type: ignore[arg-type]
    of_all = Informer(Closed(), PODS, "", lambda obj: None)  # type: ignore[arg-type]
    tasks = [asyncio.create_task(informer.run()) for informer in (of_two, of_all)]
    async with asyncio.timeout(60):
        await of_two.synced.wait()
        assert of_two.get("ours", "of-ours")
        assert of_two.alive_at > 0
        assert not of_all.synced.is_set()
        while not (of_two.refused and of_all.refused):
            await asyncio.sleep(0.01)
        closed.clear()
        while not of_two.get("theirs", "of-theirs"):
            await asyncio.sleep(0.01)
        assert not of_two.refused
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_list_is_reduced_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than one page of whole objects is held at a time."""
    pages: list[dict[str, Any]] = [
        {"metadata": {"resourceVersion": "7", "continue": "more"}, "items": [pod("a")]},
        {"metadata": {"resourceVersion": "7"}, "items": [pod("b")]},
    ]
    kept_when: list[int] = []

    async def answer(*_: Any, **__: Any) -> bytes:
        return json.dumps(pages.pop(0)).encode()

    kube = Kube(Access("http://nobody.invalid"))
    monkeypatch.setattr(kube, "_answer", answer)

    def keep(obj: Object) -> Object:
        kept_when.append(len(pages))
        return trim_for_cache(PODS, obj)

    items, version = await kube.list(PODS, keep=keep)
    assert kept_when == [1, 0]
    assert version == "7"
    assert all("managedFields" not in i["metadata"] and i["kind"] == "Pod" for i in items)
