"""Watches and logs: a stream that is silent is told from one that ended, and nothing between two streams is missed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from kubernetes import client as kubernetes
from scripted_api import RUN, Answer, Server

from deepcoder_client import connection
from deepcoder_client.connection import Connection
from deepcoder_client.errors import NotFound, Unreachable
from deepcoder_client.permissions import Right


@pytest.mark.parametrize("body", [b"", b'{"type": "ERROR", "object": {"code": 500}}\n'])
def test_watches_that_the_server_ends_at_once_are_not_asked_for_in_a_hot_loop(server: Server, body: bytes) -> None:
    def answer() -> Answer:
        if "watch=true" in server.asked[-1][1]:
            return 200, body
        return 200, {"metadata": {"resourceVersion": "5"}, "items": []}

    server.answers = [answer]
    assert list(server.client().watch("demo", seconds=1.5)) == []
    assert len(server.asked) < 12


def test_a_watch_tells_what_is_there_then_changes_and_goes_on_from_a_new_list_where_its_version_is_too_old(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepcoder_client.client.POLL_SECONDS", 0.05)

    def version(number: int, **status: Any) -> dict[str, Any]:
        return {**RUN, "metadata": {**RUN["metadata"], "resourceVersion": str(number)}, "status": status}

    def events(*changes: dict[str, Any]) -> bytes:
        return b"".join(json.dumps(change).encode() + b"\n" for change in changes)

    def listing(number: int, *items: dict[str, Any]) -> Answer:
        return 200, {"metadata": {"resourceVersion": str(number)}, "items": list(items)}

    running, over = version(6, phase="Running"), version(9, phase="Complete")
    expired = {"type": "ERROR", "object": {"code": 410}}
    server.answers = [
        listing(5, version(5, phase="Pending")),
        (200, events({"type": "MODIFIED", "object": running})),
        (200, events(expired)),
        listing(9, over),
        (200, events(expired)),
        listing(10),
    ]
    told = []
    for change in server.client().watch("demo", seconds=20):
        told.append((change.type, str(change.run.status.phase)))
        if change.type == "DELETED":
            break
    assert told == [("ADDED", "Pending"), ("MODIFIED", "Running"), ("MODIFIED", "Complete"), ("DELETED", "Complete")]
    watches = [path for _, path, _ in server.asked if "watch=true" in path]
    assert "resourceVersion=6" in watches[1]


def test_a_watch_without_even_bookmarks_is_dead_and_opened_again_from_what_was_seen(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection broke without a word, and what follows it would be old by then."""
    monkeypatch.setattr("deepcoder_client.client.POLL_SECONDS", 0.05)
    asked: list[tuple[Any, float]] = []

    def lines(kind: object, place: object, right: object, query: dict[str, Any], *, idle: float) -> Iterator[str]:
        asked.append((query["resourceVersion"], idle))
        later = {**RUN, "metadata": {**RUN["metadata"], "resourceVersion": str(5 + len(asked))}}
        yield json.dumps({"type": "MODIFIED", "object": later})
        return True

    server.answers = [(200, {"metadata": {"resourceVersion": "5"}, "items": []})]
    client = server.client()
    monkeypatch.setattr(client.connection, "lines", lines)
    changes = client.watch("demo", seconds=3600)
    assert [next(changes).run.metadata.resource_version for _ in range(3)] == ["6", "7", "8"]
    assert [version for version, _ in asked] == ["5", "6", "7"]
    assert max(idle for _, idle in asked) <= 120, "bookmarks arrive about once a minute"


def test_a_log_that_was_quiet_for_minutes_is_followed_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge without work prints nothing, and `logs -f` promises its output until the pod ends."""
    said = iter([(["one"], True), ([], True), (["two"], False)])
    asked: list[dict[str, Any]] = []

    def lines(kind: object, namespace: str, right: object, query: dict[str, Any], path: str) -> Iterator[str]:
        asked.append(dict(query))
        told, silent = next(said)
        yield from told
        return silent

    client = server.client()
    monkeypatch.setattr(client.connection, "lines", lines)
    assert list(client.pod_log("team", "judge-0", follow=True, tail=7)) == ["one", "two"]
    assert asked == [
        {"follow": "true", "tailLines": 7},
        {"follow": "true", "sinceSeconds": 300},
        {"follow": "true", "sinceSeconds": 300},
    ]


def test_a_quiet_log_ends_where_its_pod_has_gone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def lines(kind: object, namespace: str, right: object, query: dict[str, Any], path: str) -> Iterator[str]:
        if "sinceSeconds" in query:
            raise NotFound("no pods judge-0")
        yield "one"
        return True

    client = server.client()
    monkeypatch.setattr(client.connection, "lines", lines)
    assert list(client.pod_log("team", "judge-0", follow=True)) == ["one"]


def test_a_log_that_is_not_followed_and_falls_silent_is_not_taken_for_a_whole_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node may hang; a script would take the lines until then for all of them."""

    def lines(kind: object, namespace: str, right: object, query: dict[str, Any], path: str) -> Iterator[str]:
        yield "one"
        return True

    client = server.client()
    monkeypatch.setattr(client.connection, "lines", lines)
    told = client.pod_log("team", "judge-0")
    assert next(told) == "one"
    with pytest.raises(Unreachable, match="judge-0"):
        next(told)


@pytest.mark.parametrize("headers", [True, False], ids=["after a line", "before any"])
def test_a_silent_stream_is_told_from_one_that_ended(headers: bool) -> None:
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if headers:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\none\n")
            if "end" not in self.path:
                over.wait(30)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    configuration = kubernetes.Configuration()
    configuration.host = f"http://127.0.0.1:{http.server_port}"
    opened, right = Connection(configuration, "team"), Right("get", "pods/log", "", "team")

    def heard(path: str, idle: float) -> tuple[list[str], bool]:
        stream, told = opened.lines(connection.PODS, "team", right, {}, path, idle=idle), list[str]()
        while True:
            try:
                told.append(next(stream))
            except StopIteration as end:
                return told, end.value

    try:
        told, silent = heard("/quiet", 1.0)
        assert silent
        assert told in (["one"], []), "what is slower than the second counts as silence"
        if headers:
            assert heard("/end", 30.0) == (["one"], False)
    finally:
        over.set()
        http.shutdown()
        http.server_close()
