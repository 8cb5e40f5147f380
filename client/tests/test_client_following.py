"""Runs as they are followed and changed: what is told once, what stays, and how long an API server may be away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest

from deepcoder_client import client as module
from deepcoder_client.client import Client
from deepcoder_client.errors import Unreachable

SPEC = {
    "model": {"uri": "/models/demo"},
    "dataset": {"uri": "/data/train.jsonl"},
    "stages": [{"name": name, "contextTokens": 64, "maxSteps": 20, "hold": True} for name in ("short", "long")],
    "sandbox": {"template": {}},
    "checkpoint": {"s3": {"bucket": "deepcoder", "credentialsSecretRef": {"name": "s3"}}},
}


def a_run(name: str = "demo", version: int = 5, **spec: Any) -> dict[str, Any]:
    metadata = {"namespace": "team", "name": name, "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {**SPEC, **spec}, "status": {"phase": "Running"}}


class Connection:
    """Lists and watches in the order given, objects by the plural of their kind, and the patches that were sent."""

    namespace = "team"

    def __init__(self, *rounds: tuple[list[dict[str, Any]], list[dict[str, Any]]], **objects: Any) -> None:
        self.rounds, self.objects = list(rounds), objects
        self.watched: list[dict[str, Any]] = []
        self.patches: list[Any] = []

    def get(self, kind: Any, namespace: str, name: str) -> Any:
        return self.objects[kind.plural]

    def list(self, kind: Any, namespace: str, **query: Any) -> Any:
        if kind.plural in self.objects:
            return {"items": self.objects[kind.plural]}
        if not self.rounds:
            raise Unreachable("it is away")
        listed, self.watched = self.rounds.pop(0)
        return {"metadata": {"resourceVersion": "9"}, "items": listed}

    def lines(self, *_: Any, **__: Any) -> Iterator[str]:
        yield from map(json.dumps, self.watched)
        yield json.dumps({"type": "ERROR", "object": {"code": 410}})

    def patch(self, kind: Any, namespace: str, name: str, body: Any, **_: Any) -> Any:
        self.patches.append(body["spec"])
        return a_run(**body["spec"])


def client_of(connection: Any) -> Client:
    return Client(connection=connection)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the calls, which a pause moves on."""
    now = [1000.0]

    def sleep(seconds: float) -> None:
        now[0] += max(seconds, 0.001)

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    return now


@pytest.mark.usefixtures("clock")
def test_what_a_watch_has_told_is_not_told_again_by_the_list_that_follows_it() -> None:
    old, same = a_run("old"), a_run("same")
    deleted = {"type": "DELETED", "object": old}
    connection = Connection(([old, same], [deleted]), ([same], []), ([a_run("same", 6)], []))
    changes = client_of(connection).raw_watch(seconds=1000)
    told = [(kind, run["metadata"]["name"], run["metadata"]["resourceVersion"]) for kind, run in islice(changes, 4)]
    assert told == [("ADDED", "old", "5"), ("ADDED", "same", "5"), ("DELETED", "old", "5"), ("MODIFIED", "same", "6")]


def test_stages_that_were_approved_before_stay_approved_and_none_is_named_twice() -> None:
    connection = Connection(deepcoderruns=a_run(approvedStages=["short"]))
    client_of(connection).approve("demo", ["short", "long", "long"])
    assert connection.patches == [{"approvedStages": ["short", "long"]}]
    client_of(connection).approve("demo", ["short"])
    assert len(connection.patches) == 1, "nothing is to be changed"


def test_an_api_server_that_stays_away_is_not_waited_for_as_long_as_the_run(clock: list[float]) -> None:
    class Away(Connection):
        def get(self, kind: Any, namespace: str, name: str) -> Any:
            raise Unreachable("it is away")

    with pytest.raises(Unreachable):
        client_of(Away()).wait("demo", seconds=86_400)
    assert module.PATIENCE_SECONDS - 5 < clock[0] - 1000.0 <= module.PATIENCE_SECONDS


def test_pods_are_told_by_name_and_events_from_the_oldest_on() -> None:
    pods = [{"metadata": {"name": name}} for name in ("b", "a")]
    late = {"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "eventTime": "2026-01-03T00:00:00Z"}
    early = {"metadata": {"creationTimestamp": "2026-01-02T00:00:00Z"}, "eventTime": None}
    client = client_of(Connection(pods=pods, events=[late, early]))
    assert [pod["metadata"]["name"] for pod in client.pods("demo")] == ["a", "b"]
    assert client.events("team", "demo") == [early, late]


def test_events_are_those_of_the_core_group_which_kubernetes_own_view_lets_a_team_read() -> None:
    """Its view and edit had no events of events.k8s.io before 1.35; both show the same objects, in other fields."""
    asked = []

    class Noting(Connection):
        def list(self, kind: Any, namespace: str, **query: Any) -> Any:
            asked.append((kind.path(namespace), query))
            return {"items": []}

    assert client_of(Noting()).events("team", "demo", "demo") == []
    assert asked == [("/api/v1/namespaces/team/events", {"fieldSelector": "involvedObject.name=demo"})]
