"""Two writes of one object at the same moment. No S3 server on this machine answers them with 409, as AWS does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from deepcoder_contracts.base import sha256_digest
from deepcoder_contracts.chain import Missing
from deepcoder_contracts.layout import RUN
from deepcoder_contracts.manifest import RunIdentity
from deepcoder_operator.storage.reader import RunFolder, claim_folder
from deepcoder_operator.storage.s3 import Bucket, Buckets, Credentials, Exists, StorageProblem, Target

CODES = ("ConditionalRequestConflict", "OperationAborted")


class Server:
    """Keeps objects, and refuses the next puts with `refusals`, the codes of a 409."""

    def __init__(self) -> None:
        self.refusals: list[str] = []
        self.objects: dict[str, bytes] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if server.refusals:
                    self.send(409, server.refusals.pop(0))
                elif self.path in server.objects:
                    self.send(412, "PreconditionFailed")
                else:
                    server.objects[self.path] = body
                    self.send(200)

            def do_GET(self) -> None:
                self.send(200 if self.path in server.objects else 404, "NoSuchKey")

            def send(self, status: int, code: str = "") -> None:
                content = server.objects.get(self.path, b"") if self.command == "GET" else b""
                if status >= 400:
                    content = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Last-Modified", self.date_time_string())
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def bucket(self) -> Bucket:
        target = Target(f"http://127.0.0.1:{self.http.server_port}", None, Credentials("a", "b", source="Secret s3"))
        return Buckets().open(target, "bucket")


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, at once."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


def folder(server: Server) -> RunFolder:
    uid = "11111111-1111-1111-1111-111111111111"
    run = RunIdentity(namespace="ml", name="demo", uid=uid)
    return RunFolder(server.bucket(), "runs/demo", run, sha256_digest(b""))


@pytest.mark.parametrize("code", CODES)
def test_claim_that_met_a_deletion_is_written(code: str, server: Server, pauses: list[float]) -> None:
    """It counted as claimed: a 409 was taken for an object that is there."""
    server.refusals = [code, code]
    claim_folder(folder(server), looked=True)
    assert f"/bucket/runs/demo/{RUN}" in server.objects
    assert len(pauses) == 2


def test_write_that_lost_to_another_finds_that_one(server: Server) -> None:
    server.objects["/bucket/key"] = b"theirs"
    server.refusals = ["ConditionalRequestConflict"]
    with pytest.raises(Exists, match="s3://bucket/key"):
        server.bucket().put_once("key", b"mine")


def test_conflict_that_does_not_end_is_a_problem_that_names_object_and_server(
    server: Server, pauses: list[float]
) -> None:
    server.refusals = ["OperationAborted"] * 4
    with pytest.raises(StorageProblem, match=r"s3://bucket/key at http://127\.0\.0\.1:\d+: OperationAborted: no") as e:
        server.bucket().put_once("key", b"mine")
    assert e.value.problem.reason == "StorageFailed"
    assert (len(pauses), server.refusals) == (3, [])
    with pytest.raises(Missing):
        server.bucket().get("key")
