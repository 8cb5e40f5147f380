"""An API server that is away for a while, or answers nonsense: every failure has a name of ours, and watches go on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from aiohttp import web
from free_ports import free_port
from waits import until

from deepcoder_operator.kube import errors
from deepcoder_operator.kube import informer as informers
from deepcoder_operator.kube.access import Access
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.informer import Informer
from deepcoder_operator.kube.resources import CONFIGMAPS, PODS, RAYJOBS, Resource

ADMISSION = "admissionregistration.k8s.io"
WEBHOOKS = Resource(ADMISSION, "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration")
POLICIES = Resource(ADMISSION, "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy")
BINDINGS = Resource(ADMISSION, "v1", "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding")

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def client_of(port: int) -> AsyncIterator[Kube]:
    kube = Kube(Access(f"http://127.0.0.1:{port}"))
    try:
        yield kube
    finally:
        await kube.close()


@asynccontextmanager
async def serving(answer: Answer, port: int = 0) -> AsyncIterator[int]:
    """An API server of a few lines; its connections break when it ends."""
    app = web.Application()

    async def handle(request: web.Request) -> web.StreamResponse:
        return await answer(request)

    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


@asynccontextmanager
async def watching(kube: Kube, resource: Any = PODS) -> AsyncIterator[Informer]:
    informer = Informer(kube, resource, "", lambda obj: None)
    task = asyncio.create_task(informer.run())
    try:
        yield informer
        assert not task.done(), task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class Pods:
    """Lists the pods it has; a watch ends after a moment, as a server ends it that has heard of its own end."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.version = 10

    def add(self, name: str) -> None:
        self.version += 1
        meta = {"name": name, "namespace": "ml", "resourceVersion": str(self.version)}
        self.items.append({"metadata": meta})

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return web.json_response({"metadata": {"resourceVersion": str(self.version)}, "items": self.items})
        response = web.StreamResponse()
        await response.prepare(request)
        for pod in self.items:
            if int(pod["metadata"]["resourceVersion"]) > int(request.query["resourceVersion"]):
                await response.write(json.dumps({"type": "ADDED", "object": pod}).encode() + b"\n")
        await asyncio.sleep(0.05)
        return response


async def test_watch_of_a_server_that_is_away_raises_unavailable() -> None:
    async with client_of(free_port()) as kube:
        with pytest.raises(errors.Unavailable, match="pods"):
            async for _ in kube.watch(PODS, None, "", "1"):
                pass


async def test_informer_outlives_an_api_server_that_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informers, "FIRST_PAUSE_SECONDS", 0.05)
    pods, port = Pods(), free_port()
    async with client_of(port) as kube, watching(kube) as informer:
        pods.add("before")
        async with serving(pods, port):
            await until(lambda: informer.get("ml", "before"))
        pods.add("after")
        async with serving(pods, port):
            await until(lambda: informer.get("ml", "after"))


async def test_answer_that_is_no_json_is_named_not_raised_as_it_is() -> None:
    async def proxy_page(_: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>please log in</html>", content_type="text/html")

    async with serving(proxy_page) as port, client_of(port) as kube:
        with pytest.raises(errors.KubeError, match="not JSON"):
            await kube.get(PODS, "ml", "demo")
        with pytest.raises(errors.Unavailable):
            async for _ in kube.watch(PODS, None, "", "1"):
                pass


async def test_retry_after_may_be_a_date() -> None:
    asked: list[str] = []

    async def overloaded(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        if len(asked) > 1:
            return web.json_response({"metadata": {"name": "demo"}})
        return web.Response(status=429, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"})

    async with serving(overloaded) as port, client_of(port) as kube:
        assert (await kube.get(PODS, "ml", "demo"))["metadata"]["name"] == "demo"


EVENT = {"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e", "namespace": "ml"}}


async def test_creation_is_repeated_when_the_server_asks_to_come_later_and_no_sooner_than_it_says() -> None:
    times: list[float] = []

    async def overloaded(_: web.Request) -> web.StreamResponse:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            return web.json_response({"message": "too many requests"}, status=429, headers={"Retry-After": "1"})
        return web.json_response(EVENT, status=201)

    async with serving(overloaded) as port, client_of(port) as kube:
        assert await kube.create(EVENT) == EVENT
    assert len(times) == 2
    assert times[1] - times[0] >= 1


@pytest.mark.parametrize("answer", [500, 503, None])
async def test_creation_whose_outcome_is_unknown_is_not_repeated(answer: int | None) -> None:
    asked: list[str] = []

    async def broken(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        if answer is None:
            assert request.transport is not None
            request.transport.close()
        return web.json_response({"message": "etcd is away"}, status=answer or 500)

    async with serving(broken) as port, client_of(port) as kube:
        with pytest.raises(errors.Unavailable):
            await kube.create(EVENT)
    assert len(asked) == 1


async def test_creation_waits_for_a_server_that_cannot_be_connected_to() -> None:
    async def created(_: web.Request) -> web.StreamResponse:
        return web.json_response(EVENT, status=201)

    port = free_port()
    async with client_of(port) as kube:
        creation = asyncio.create_task(kube.create(EVENT))
        await asyncio.sleep(0.1)
        async with serving(created, port):
            assert await creation == EVENT


async def test_kind_that_is_not_served_has_no_objects_and_is_seen_once_it_is() -> None:
    """KubeRay's CRDs may be removed and installed again while the operator runs."""
    served = False
    pods = Pods()
    pods.add("demo")

    async def crds(request: web.Request) -> web.StreamResponse:
        if served:
            return await pods(request)
        return web.json_response({"message": "the server could not find the requested resource"}, status=404)

    monkey = pytest.MonkeyPatch()
    monkey.setattr(informers, "FIRST_PAUSE_SECONDS", 0.05)
    try:
        async with serving(crds) as port, client_of(port) as kube, watching(kube, RAYJOBS) as informer:
            await until(informer.synced.is_set)
            assert informer.get("ml", "demo") is None
            served = True
            await until(lambda: informer.get("ml", "demo"))
    finally:
        monkey.undo()


async def test_outage_is_no_reason_to_restart_but_a_watch_that_stands_still_is() -> None:
    """`alive_at` moves with every try, also one that fails: only a watch that tries no more is dead."""
    async with client_of(free_port()) as kube, watching(kube) as informer:
        start = asyncio.get_running_loop().time()
        await until(lambda: informer.alive_at > start)
        assert not informer.synced.is_set()


def kubelet(lines: list[bytes]) -> Answer:
    """Answers as a kubelet does: tailLines says where to begin, limitBytes ends the answer so many bytes later."""

    async def log(request: web.Request) -> web.StreamResponse:
        assert request.path == "/api/v1/namespaces/ml/pods/demo-head/log"
        assert request.query["container"] == "ray-head"
        text = b"".join(lines[-int(request.query.get("tailLines", len(lines))) :])
        return web.Response(body=text[: int(request.query.get("limitBytes", len(text)))], content_type="text/plain")

    return log


async def test_of_a_long_log_the_end_is_read_and_what_is_too_much_of_its_beginning_is_dropped() -> None:
    lines = [b"step %06d " % i + b"x" * 387 + b"\n" for i in range(30_000)] + [b"last words \xff\n"]
    async with serving(kubelet(lines)) as port, client_of(port) as kube:
        text = await kube.read_log("ml", "demo-head", "ray-head", 20_000, 4 << 20)
    assert text.endswith("last words \ufffd\n")
    assert (4 << 20) - 400 < len(text.encode()) <= (4 << 20) + 2
    assert text.startswith("step "), "it begins where a line does"


async def test_short_log_is_read_whole() -> None:
    async with serving(kubelet([b"one\n", b"two\n", b"three"])) as port, client_of(port) as kube:
        assert await kube.read_log("ml", "demo-head", "ray-head", 50, 1024) == "one\ntwo\nthree"
        assert await kube.read_log("ml", "demo-head", "ray-head", 2, 1024) == "two\nthree"
        assert await kube.read_log("ml", "demo-head", "ray-head", 50, 7) == "three"


async def test_log_of_a_container_that_has_not_begun_is_an_error_with_the_servers_words() -> None:
    async def waiting(_: web.Request) -> web.StreamResponse:
        return web.json_response({"message": "container ray-head is waiting to start"}, status=400)

    async with serving(waiting) as port, client_of(port) as kube:
        with pytest.raises(errors.KubeError, match="waiting to start"):
            await kube.read_log("ml", "demo-head", "ray-head", 50, 1024)


async def test_list_passes_both_selectors_on_to_every_page() -> None:
    asked: list[dict[str, str]] = []

    async def pages(request: web.Request) -> web.StreamResponse:
        asked.append(dict(request.query))
        more = {"continue": "next"} if len(asked) == 1 else {}
        return web.json_response({"metadata": {"resourceVersion": "7"} | more, "items": []})

    async with serving(pages) as port, client_of(port) as kube:
        assert await kube.list(PODS, "ml", "a=b", field_selector="spec.nodeName=n1") == ([], "7")
    assert [(q["labelSelector"], q["fieldSelector"]) for q in asked] == [("a=b", "spec.nodeName=n1")] * 2


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, 'admission webhook "gpu.example.org" denied the request: no cost centre', errors.Forbidden),
        (403, 'admission webhook "gpu.example.org" denied the request: no cost centre', errors.Forbidden),
        (409, 'admission webhook "gpu.example.org" denied the request: no cost centre', errors.Forbidden),
        (409, 'configmaps "x" already exists', errors.AlreadyExists),
        (422, "rayjobs x is forbidden: ValidatingAdmissionPolicy 'p' denied request: no cost centre", errors.Forbidden),
        (422, 'RayJob "x" is invalid: spec.ttl: Invalid value: -1', errors.Invalid),
        (400, "RayJob in version v1 cannot be handled as a RayJob", errors.Invalid),
    ],
    ids=[
        "webhook",
        "webhook that names a status",
        "webhook that names a conflict's",
        "name",
        "policy",
        "schema",
        "form",
    ],
)
async def test_refusal_of_a_policy_is_none_of_the_objects_form(
    status: int, message: str, kind: type[errors.KubeError]
) -> None:
    """What is malformed is never tried again and fails its run; a policy is mended by whoever has it."""

    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"kind": "Status", "code": status, "message": message}, status=status)

    async with serving(refuse) as port, client_of(port) as kube:
        with pytest.raises(errors.KubeError) as raised:
            await kube.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "ml"}})
    assert type(raised.value) is kind


@pytest.mark.apiserver
async def test_a_real_servers_policy_is_told_from_a_malformed_object(kube: Kube, namespace: str) -> None:
    name, there = f"denies-{namespace}", {"kubernetes.io/metadata.name": namespace}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}
    matched = {"resourceRules": [rule], "namespaceSelector": {"matchLabels": there}}
    policy = {"matchConstraints": matched, "validations": [{"expression": "false", "message": "no cost centre"}]}
    binding = {"policyName": name, "validationActions": ["Deny"]}
    for resource, spec in ((POLICIES, policy), (BINDINGS, binding)):
        body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"name": name}}
        await kube.post(resource.path(None), body | {"spec": spec})
    try:
        async with asyncio.timeout(60):
            with pytest.raises(errors.Forbidden, match="no cost centre"):
                await make_maps(kube, namespace, [])
    finally:
        for resource in (BINDINGS, POLICIES):
            await kube.delete(resource, None, name)


async def make_maps(kube: Kube, namespace: str, tried: list[str]) -> None:
    """One ConfigMap after the other, until the server has heard of what refuses them; the names go into `tried`."""
    for number in range(1000):
        tried.append(f"map-{number}")
        meta = {"name": tried[-1], "namespace": namespace}
        await kube.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})
        await asyncio.sleep(0.05)


@pytest.mark.apiserver
async def test_webhook_that_gives_no_answer_is_told_from_a_server_that_gives_none(kube: Kube, namespace: str) -> None:
    """Both are an answer of 500; only of one it is certain that nothing was done, and somebody has to mend it."""
    name = f"away-{namespace}"
    webhook = {
        "name": "policies.example.org",
        "clientConfig": {"url": f"https://127.0.0.1:{free_port()}/away"},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "timeoutSeconds": 1,
    }
    body = {"apiVersion": WEBHOOKS.api_version, "kind": WEBHOOKS.kind, "metadata": {"name": name}}
    await kube.post(WEBHOOKS.path(None), body | {"webhooks": [webhook]})

    tried: list[str] = []
    try:
        async with asyncio.timeout(60):
            with pytest.raises(errors.WebhookAway, match=r"policies\.example\.org"):
                await make_maps(kube, namespace, tried)
    finally:
        await kube.delete(WEBHOOKS, None, name)
    assert await kube.find(CONFIGMAPS, namespace, tried[-1]) is None
