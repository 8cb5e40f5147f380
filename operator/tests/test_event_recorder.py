"""Events of many runs at once: all are posted, by a few, and what is lost is counted."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from deepcoder_operator.kube import errors, events
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.events import EventRecorder
from deepcoder_operator.kube.resources import EVENTS
from deepcoder_operator.metrics import EVENTS_LOST


class API:
    """Takes events, at most so many at a time, or refuses them."""

    def __init__(self) -> None:
        self.posted: list[dict[str, Any]] = []
        self.now = self.most = 0
        self.open = asyncio.Event()
        self.open.set()
        self.refuses = False

    async def create(self, event: dict[str, Any]) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        await self.open.wait()
        self.now -= 1
        if self.refuses:
            raise errors.Forbidden("no", 403)
        self.posted.append(event)


def run(i: int) -> dict[str, Any]:
    meta = {"name": f"demo-{i}", "namespace": "ml", "uid": f"u{i}"}
    return {"apiVersion": "deepcoder.dev/v1alpha1", "kind": "DeepCoderRun", "metadata": meta}


def lost() -> float:
    return sum(s.value for m in EVENTS_LOST.collect() for s in m.samples if s.name.endswith("_total"))


@pytest.fixture
def api() -> API:
    return API()


def recorder(api: Any, clock: Any = lambda: 0.0) -> EventRecorder:
    return EventRecorder(api, clock)


async def test_events_of_a_thousand_runs_at_once_are_all_posted_by_a_few(api: API) -> None:
    record = recorder(api)
    for i in range(1000):
        record(run(i), "AttemptFailed", "the head was lost")
    await record.flush()
    assert {e["regarding"]["name"] for e in api.posted} == {f"demo-{i}" for i in range(1000)}
    assert len({e["metadata"]["name"] for e in api.posted}) == 1000
    assert 1 < api.most <= 8


@pytest.mark.apiserver
@pytest.mark.parametrize("text", ["a" * 2000 + ": mend it", "≥" * 1000, "x" + "𝒳" * 400, "half a pair \ud835 " * 100])
async def test_text_of_any_length_and_letters_is_taken_by_the_api_server(kube: Kube, namespace: str, text: str) -> None:
    """Which counts bytes."""
    record = EventRecorder(kube, time.monotonic)
    about = run(1)
    about["metadata"]["namespace"] = namespace
    before = lost()
    record(about, "AttemptFailed", text)
    await record.flush()
    assert lost() == before
    (event,), _ = await kube.list(EVENTS, namespace)
    assert len(event["note"].encode()) > 1000
    assert event["note"][:150] == text[:150].encode(errors="replace").decode()
    assert event["note"][-50:] == text[-50:].encode(errors="replace").decode()


async def test_event_is_posted_once_in_ten_minutes(api: API) -> None:
    now = [0.0]
    record = recorder(api, lambda: now[0])
    for at in (0.0, 1.0, 599.0, 600.0):
        now[0] = at
        record(run(1), "Stalled", "no step")
        await record.flush()
    assert len(api.posted) == 2


async def test_what_finds_the_queue_full_is_counted_and_may_be_told_later(
    api: API, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "QUEUE", 5)
    record, before = recorder(api), lost()
    for i in range(8):
        record(run(i), "Stalled", "no step")
    assert lost() - before == 3
    await record.flush()
    record(run(7), "Stalled", "no step")
    await record.flush()
    assert len(api.posted) == 6


async def test_refused_event_is_counted_and_fails_nobody(api: API) -> None:
    record, before = recorder(api), lost()
    api.refuses = True
    record(run(1), "Stalled", "no step")
    await record.flush()
    assert lost() - before == 1


async def test_stopping_does_not_wait_for_an_api_server_that_takes_nothing(
    api: API, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "FLUSH_SECONDS", 0.05)
    record, before = recorder(api), lost()
    api.open.clear()
    for i in range(20):
        record(run(i), "Stalled", "no step")
    async with asyncio.timeout(60):
        await record.flush()
    assert lost() - before == 20
