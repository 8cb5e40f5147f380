"""Answers of S3 servers that no server on this machine gives: what is tried again, and after how long."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from deepcoder_trainer.checkpoint.errors import ObjectExists, StorageUnavailable
from deepcoder_trainer.checkpoint.opening import open_storage
from deepcoder_trainer.checkpoint.storage import ObjectStore


class Server:
    """Keeps objects, and refuses the next puts with `refusals`: status and code."""

    def __init__(self) -> None:
        self.refusals: list[tuple[int, str]] = []
        self.objects: dict[str, bytes] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if server.refusals:
                    self.send(*server.refusals.pop(0))
                elif self.headers["If-None-Match"] and self.path in server.objects:
                    self.send(412, "PreconditionFailed")
                else:
                    server.objects[self.path] = body
                    self.send(200)

            def do_GET(self) -> None:
                self.send(200 if self.path in server.objects else 404, "NoSuchKey")

            do_HEAD = do_GET

            def send(self, status: int, code: str = "") -> None:
                content = server.objects.get(self.path, b"") if self.command != "PUT" else b""
                if status >= 400:
                    content = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Last-Modified", self.date_time_string())
                self.send_header("ETag", '"e"')
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def store(server: Server, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    return open_storage("s3://bucket/run", f"http://127.0.0.1:{server.http.server_port}")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, at once."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.mark.parametrize("refusal", [(503, "SlowDown"), (500, "InternalError"), (503, "ServiceUnavailable")])
@pytest.mark.usefixtures("pauses")
def test_a_server_that_is_away_for_a_moment_is_asked_again(
    refusal: tuple[int, str], server: Server, store: ObjectStore
) -> None:
    server.refusals = [refusal] * 4
    assert store.put_bytes("RUN.json", b"mine", if_absent=True).size == 4


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "OperationAborted", "ConcurrentModification"])
@pytest.mark.parametrize("if_absent", [True, False])
def test_a_write_that_meets_another_is_repeated_after_growing_pauses(
    code: str, if_absent: bool, server: Server, store: ObjectStore, pauses: list[float]
) -> None:
    """AWS has two names for it. Asked again at once, all tries may fall into the time of the other write."""
    server.refusals = [(409, code)] * 3
    assert store.put_bytes("MANIFEST.json", b"mine", if_absent=if_absent).size == 4
    assert [low <= pause <= 2 * low for low, pause in zip((0.25, 0.5, 1.0), pauses, strict=True)] == [True] * 3


@pytest.mark.usefixtures("pauses")
def test_a_write_that_lost_to_another_finds_that_one(server: Server, store: ObjectStore) -> None:
    server.objects["/bucket/run/MANIFEST.json"] = b"theirs"
    server.refusals = [(409, "ConditionalRequestConflict")]
    with pytest.raises(ObjectExists, match="PreconditionFailed"):
        store.put_bytes("MANIFEST.json", b"mine", if_absent=True)


def test_a_conflict_that_does_not_end_is_given_up(server: Server, store: ObjectStore, pauses: list[float]) -> None:
    server.refusals = [(409, "OperationAborted")] * 5
    with pytest.raises(StorageUnavailable, match="OperationAborted") as e:
        store.put_bytes("k", b"mine")
    assert type(e.value) is StorageUnavailable, "by which name an attempt's end is told"
    assert (len(pauses), server.refusals) == (4, [])
