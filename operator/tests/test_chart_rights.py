"""The rights that the chart grants are enough to work with, and no more: tried at a real API server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from chart_account import Account
from waits import WAIT_SECONDS

from deepcoder_operator.builders.pool import PoolSettings
from deepcoder_operator.controllers.pool import PoolController
from deepcoder_operator.domain.names import LABEL_RUN
from deepcoder_operator.domain.pool_names import selector
from deepcoder_operator.kube import errors
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.events import EventRecorder
from deepcoder_operator.kube.resources import EVENTS, PODS, POOLS, SECRETS
from deepcoder_operator.progress.certificate_store import CertificateStore
from deepcoder_operator.progress_board import ProgressBoard
from deepcoder_operator.sandbox.capacity import CapacityPoller
from deepcoder_operator.sandbox.judges import Judges
from deepcoder_operator.sandbox.pool_objects import PoolObjects
from deepcoder_operator.sandbox.reconciler import PoolReconciler

pytestmark = pytest.mark.apiserver


@pytest.fixture
async def operator(account: Account, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kube]:
    """A client with the operator's ServiceAccount."""
    monkeypatch.setenv("KUBECONFIG", str(account.kubeconfig))
    client = await Kube.connect()
    yield client
    await client.close()


async def test_pools_can_be_run_with_the_granted_rights(kube: Kube, operator: Kube, namespace: str) -> None:
    """Everything a pool needs is made and its status is written; a right that is missing would leave it undone."""
    settings = PoolSettings("sandbox:1", namespace, {}, LABEL_RUN)
    recorder = EventRecorder(operator, time.monotonic)
    controller = PoolController(
        operator,
        ProgressBoard(),
        lambda pods: PoolReconciler(
            kube=operator,
            judges=Judges(operator, pods, settings, CapacityPoller(time.monotonic)),
            support=PoolObjects(operator, settings, time.monotonic),
            board=ProgressBoard(),
            record=recorder,
            clock=time.monotonic,
            wall=time.time,
        ),
    )
    body: dict[str, Any] = {
        "apiVersion": "deepcoder.dev/v1alpha1",
        "kind": "SandboxPool",
        "metadata": {"name": "judges", "namespace": namespace},
        "spec": {"minReplicas": 2},
    }
    await kube.create(body)
    controller.start()
    task = asyncio.create_task(controller.run())
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while ((await kube.get(POOLS, namespace, "judges")).get("status") or {}).get("replicas") != 2:
                assert not task.done()
                await asyncio.sleep(0.1)
            await kube.patch(POOLS, namespace, "judges", {"spec": {"scaling": {"mode": "External"}, "replicas": 0}})
            while (await kube.list(PODS, namespace, selector("judges")))[0]:
                await asyncio.sleep(0.1)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await recorder.flush()
    events, _ = await kube.list(EVENTS, namespace)
    assert "JudgesCreated" in {e["reason"] for e in events}


async def test_certificates_can_be_kept_and_tokens_reviewed(operator: Kube, namespace: str) -> None:
    secret = f"{namespace}-deepcoder-operator-progress-tls"
    keeper = CertificateStore(operator, namespace, secret, ["localhost"])
    await keeper.refresh()
    await operator.patch(SECRETS, namespace, secret, {"data": {"tls.key": ""}})
    await keeper.refresh()
    assert not (await operator.review_token("not.a.token", "deepcoder-operator")).get("authenticated")


async def test_what_is_not_needed_is_forbidden(kube: Kube, operator: Kube, namespace: str) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "theirs", "namespace": namespace}}
    await kube.create(secret)
    with pytest.raises(errors.Forbidden):
        await operator.list(SECRETS, namespace)
    with pytest.raises(errors.Forbidden):
        await operator.patch(SECRETS, namespace, "theirs", {"data": {"k": ""}})
    with pytest.raises(errors.Forbidden):
        await operator.delete(SECRETS, namespace, "theirs")
    await kube.create(
        {
            "apiVersion": "deepcoder.dev/v1alpha1",
            "kind": "SandboxPool",
            "metadata": {"name": "theirs", "namespace": namespace},
            "spec": {},
        }
    )
    with pytest.raises(errors.Forbidden):
        await operator.patch(POOLS, namespace, "theirs", {"spec": {"replicas": 9}})
