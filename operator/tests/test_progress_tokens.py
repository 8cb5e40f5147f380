"""Real tokens of real pods, reviewed by a real API server; certificates kept in a real Secret."""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest

from deepcoder_contracts.progress import AUDIENCE, ProgressReply, ProgressReport, TrainerPhase
from deepcoder_operator.domain.names import HEAD, LABEL_ORDINAL, LABEL_ROLE, LABEL_RUN, LABEL_RUN_UID
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.resources import PODS, SECRETS, SERVICE_ACCOUNTS
from deepcoder_operator.progress.authentication import (
    ACCEPTED_SECONDS,
    Remembering,
    Subject,
    TokenReviewer,
    Unauthenticated,
)
from deepcoder_operator.progress.certificate_store import CertificateStore
from deepcoder_operator.progress.server import ProgressServer
from deepcoder_operator.progress_board import ProgressBoard, RunKey

pytestmark = pytest.mark.apiserver

SECRET = "progress-tls"


async def make_pod(kube: Kube, namespace: str, name: str, run: str, ordinal: int = 1) -> dict[str, Any]:
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return await kube.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {LABEL_RUN: run, LABEL_RUN_UID: "u", LABEL_ORDINAL: str(ordinal), LABEL_ROLE: HEAD},
            },
            "spec": {
                "serviceAccountName": "trainer",
                "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{"name": "c", "image": "x", "securityContext": restricted}],
            },
        }
    )


async def make_token(kube: Kube, namespace: str, pod: dict[str, Any] | None, audience: str = AUDIENCE) -> str:
    """A token as the kubelet projects it into the pod."""
    spec: dict[str, Any] = {"audiences": [audience], "expirationSeconds": 3600}
    if pod is not None:
        meta = pod["metadata"]
        spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    answer = await kube.post(SERVICE_ACCOUNTS.path(namespace, "trainer", "token"), body)
    return str(answer["status"]["token"])


@pytest.fixture
async def trainer(kube: Kube, namespace: str) -> str:
    await kube.create(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "trainer", "namespace": namespace}}
    )
    return namespace


async def test_token_tells_the_pod_that_it_is_bound_to(kube: Kube, trainer: str) -> None:
    pod = await make_pod(kube, trainer, "demo-head", "demo")
    authenticator = Remembering(TokenReviewer(kube), time.monotonic)
    subject = await authenticator.authenticate(await make_token(kube, trainer, pod))
    assert subject == Subject(trainer, "demo-head", pod["metadata"]["uid"])


async def test_tokens_for_others_prove_nothing_to_us(kube: Kube, trainer: str) -> None:
    pod = await make_pod(kube, trainer, "demo-head", "demo")
    authenticator = Remembering(TokenReviewer(kube), time.monotonic)
    api_token = await make_token(kube, trainer, pod, "https://kubernetes.default.svc.cluster.local")
    unbound = await make_token(kube, trainer, None)
    for token in (api_token, unbound, "not.a.token"):
        with pytest.raises(Unauthenticated):
            await authenticator.authenticate(token)
        assert not authenticator.knows(token)


@pytest.mark.early
async def test_token_of_a_pod_that_is_gone_is_refused_once_the_verdict_is_old(kube: Kube, trainer: str) -> None:
    pod = await make_pod(kube, trainer, "demo-head", "demo")
    token = await make_token(kube, trainer, pod)
    now = [0.0]
    authenticator = Remembering(TokenReviewer(kube), lambda: now[0])
    assert not authenticator.knows(token)
    await authenticator.authenticate(token)
    assert authenticator.knows(token)
    await kube.delete(PODS, trainer, "demo-head", grace_seconds=0)
    assert (await authenticator.authenticate(token)).pod_name == "demo-head"
    # The API server, too, remembers a verdict on a token for ten seconds: wait until it has forgotten this one.
    async with asyncio.timeout(60):
        while (await kube.review_token(token, AUDIENCE)).get("authenticated"):
            await asyncio.sleep(0.5)
    now[0] = ACCEPTED_SECONDS
    assert not authenticator.knows(token)
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(token)


@asynccontextmanager
async def serving(kube: Kube, namespace: str, board: ProgressBoard) -> AsyncIterator[tuple[str, ssl.SSLContext]]:
    keeper = CertificateStore(kube, namespace, SECRET, ["localhost", "127.0.0.1"])
    await keeper.refresh()

    async def find_pod(ns: str, name: str) -> dict[str, Any] | None:
        return await kube.find(PODS, ns, name)

    server = ProgressServer(board, Remembering(TokenReviewer(kube), time.monotonic), find_pod)
    port = await server.start("127.0.0.1", 0, keeper.context)
    try:
        yield f"https://localhost:{port}", ssl.create_default_context(cadata=keeper.bundle)
    finally:
        await server.stop()


async def test_head_reports_for_its_run_and_for_no_other(kube: Kube, trainer: str) -> None:
    board = ProgressBoard()
    for run in ("demo", "other"):
        board.post(RunKey(trainer, run), run_uid="u", ordinal=1, reply=ProgressReply(), pool=None)
    head = await make_pod(kube, trainer, "demo-head", "demo")
    token = await make_token(kube, trainer, head)
    body = ProgressReport(
        ordinal=1, stage="s", phase=TrainerPhase.TRAINING, step=3, max_steps=9, sent_at=datetime.now(UTC)
    ).to_json()
    async with serving(kube, trainer, board) as (url, trust):
        connector = aiohttp.TCPConnector(ssl=trust)
        async with aiohttp.ClientSession(connector=connector, headers={"Authorization": f"Bearer {token}"}) as session:
            statuses = {
                run: (await session.post(f"{url}/v1/runs/{trainer}/{run}/progress", data=body)).status
                for run in ("demo", "other")
            }
    assert statuses == {"demo": 200, "other": 403}
    heartbeat = board.heartbeat(RunKey(trainer, "demo"), 1)
    assert heartbeat is not None
    assert heartbeat.report.step == 3


def keeper(kube: Kube, namespace: str, now: datetime | None = None) -> CertificateStore:
    return CertificateStore(kube, namespace, SECRET, ["localhost"], lambda: now or datetime.now(UTC))


async def test_replicas_that_start_together_agree_on_one_authority(kube: Kube, namespace: str) -> None:
    replicas = [keeper(kube, namespace) for _ in range(5)]
    await asyncio.gather(*(k.refresh() for k in replicas))
    assert len({k.bundle for k in replicas}) == 1


async def test_restart_serves_under_the_same_authority(kube: Kube, namespace: str) -> None:
    first, second = keeper(kube, namespace), keeper(kube, namespace)
    await first.refresh()
    before = await kube.get(SECRETS, namespace, SECRET)
    await second.refresh()
    assert second.bundle == first.bundle
    after = await kube.get(SECRETS, namespace, SECRET)
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


async def test_renewed_certificate_is_stored_and_taken_by_the_other_replica(kube: Kube, namespace: str) -> None:
    now, later = datetime.now(UTC), datetime.now(UTC) + timedelta(days=61)
    first, second = keeper(kube, namespace, now), keeper(kube, namespace, later)
    await first.refresh()
    old = (await kube.get(SECRETS, namespace, SECRET))["data"]
    await second.refresh()
    new = (await kube.get(SECRETS, namespace, SECRET))["data"]
    assert (new["ca.crt"], new["tls.crt"] != old["tls.crt"]) == (old["ca.crt"], True)
    await first.refresh()
    assert first._material == second._material


@pytest.mark.parametrize("how", ["deleted", "damaged"])
async def test_authority_that_is_lost_is_put_back_by_whoever_serves_with_it(
    kube: Kube, namespace: str, how: str
) -> None:
    """Heads that run trust no other one than that which they began with."""
    serves = keeper(kube, namespace)
    await serves.refresh()
    before = (await kube.get(SECRETS, namespace, SECRET))["data"]
    if how == "deleted":
        assert await kube.delete(SECRETS, namespace, SECRET)
    else:
        await kube.patch(SECRETS, namespace, SECRET, {"data": {"ca.key": base64.b64encode(b"no key").decode()}})
    await serves.refresh()
    assert (await kube.get(SECRETS, namespace, SECRET))["data"] == before


async def test_damaged_secret_is_made_anew(kube: Kube, namespace: str) -> None:
    first = keeper(kube, namespace)
    await first.refresh()
    broken = base64.b64encode(b"no key").decode()
    await kube.patch(SECRETS, namespace, SECRET, {"data": {"tls.key": broken}})
    second = keeper(kube, namespace)
    await second.refresh()
    third = keeper(kube, namespace)
    await third.refresh()
    assert third.bundle == second.bundle != first.bundle
