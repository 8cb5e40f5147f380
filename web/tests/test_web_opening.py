"""Buckets are read with the run's own keys, where the operator allows it, and at a bounded cost.

The server is a small one of these tests, which refuses keys and is slow as it is told.
"""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from web_fakes import ApiServer, run_of, until

from deepcoder_client.connection import SECRETS
from deepcoder_client.errors import NotFound, StorageError, StorageFault
from deepcoder_client.run_folder import RunFolder
from deepcoder_client.storage import Bucket, Credentials, Limits
from deepcoder_web import run_folders, storage_threads
from deepcoder_web.run_folders import FRESH_SECONDS, NotAllowed, RunFolders, vet_address
from deepcoder_web.storage_threads import Late, StorageThreads

EMPTY = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
LISTED = b"<Contents><Key>k</Key><Size>1</Size><LastModified>2026-05-01T12:00:00Z</LastModified></Contents>"
REFUSED = b"<Error><Code>InvalidAccessKeyId</Code><Message>internal words</Message></Error>"


class S3:
    """Takes one key, and sends an object as slowly as it is told."""

    def __init__(self) -> None:
        self.key = "first"
        self.asked: list[str] = []
        self.paths: list[str] = []
        self.body, self.declared, self.pause = b"content", 7, 0.0
        self.listing, self.chunked = EMPTY, False
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                key = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
                server.asked.append(key[1] if key else "")
                server.paths.append(self.path)
                if not key or key[1] != server.key:
                    self._send(403, REFUSED, len(REFUSED))
                elif "list-type" in self.path:
                    self._send(200, server.listing, len(server.listing))
                else:
                    self._send(200, server.body, server.declared)

            def _send(self, status: int, body: bytes, length: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                if server.chunked:
                    self.send_header("Transfer-Encoding", "chunked")
                self.send_header("Last-Modified", "Fri, 01 May 2026 12:00:00 GMT")
                self.end_headers()
                try:
                    for at in range(len(body)):
                        self.wfile.write(body[at : at + 1])
                        time.sleep(server.pause)
                except OSError:
                    pass

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def s3() -> Iterator[S3]:
    server = S3()
    yield server
    server.close()


class World:
    def __init__(self, s3: S3, *allowed: str) -> None:
        self.now = 1000.0
        self.api = ApiServer()
        self.rotate("first")
        self.folders = RunFolders(self.api, allowed, lambda: self.now)
        self.run = run_of(endpoint=s3.url)

    def rotate(self, key: str) -> None:
        data = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": "s"}
        self.api.secret = {"data": {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}}

    def ask(self) -> int:
        self.now += 1
        return len(self.folders.ask(self.run, RunFolder.metrics_objects))


def test_the_pages_own_identity_is_never_shown_to_a_server(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "own")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "own")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    world = World(s3, s3.url)
    assert world.ask() == 0
    assert set(s3.asked) == {"first"}
    world.api.secret = NotFound(f"no {SECRETS.plural}")
    world.now += FRESH_SECONDS
    before = len(s3.asked)
    with pytest.raises(StorageError) as refusal:
        world.ask()
    assert (refusal.value.fault, len(s3.asked)) == (StorageFault.NO_CREDENTIALS, before)


def test_a_run_without_a_secret_is_not_read(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "own")
    world = World(s3, s3.url)
    store = world.run.spec.checkpoint.s3.model_copy(update={"credentials_secret_ref": None})
    checkpoint = world.run.spec.checkpoint.model_copy(update={"s3": store})
    world.run = world.run.model_copy(update={"spec": world.run.spec.model_copy(update={"checkpoint": checkpoint})})
    with pytest.raises(StorageError) as refusal:
        world.ask()
    assert (refusal.value.fault, s3.asked) == (StorageFault.NO_CREDENTIALS, [])


def test_a_rotated_secret_is_used_at_once_when_the_old_keys_are_refused(s3: S3) -> None:
    world = World(s3, s3.url)
    world.ask()
    s3.key = "second"
    with pytest.raises(StorageError) as refusal:
        world.ask()
    assert refusal.value.fault is StorageFault.REFUSED
    world.rotate("second")
    assert world.ask() == 0
    s3.key = "third"
    world.rotate("third")
    world.now += FRESH_SECONDS
    before = len(s3.asked)
    assert world.ask() == 0
    assert set(s3.asked[before:]) == {"third"}, "after a minute the old keys are not even tried"


def test_a_server_that_is_not_allowed_is_not_asked(s3: S3) -> None:
    world = World(s3, "https://minio.storage.svc:9000")
    with pytest.raises(NotAllowed, match="not among the endpoints"):
        world.ask()
    assert not s3.asked


def test_a_server_on_the_pages_own_machine_is_not_asked_unless_it_is_named(s3: S3) -> None:
    world = World(s3)
    with pytest.raises(NotAllowed, match="own machine"):
        world.ask()
    assert not s3.asked
    assert World(s3, f"{s3.url}/").ask() == 0


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "localhost", "[::1]", "[fe80::1]", "0.0.0.0", "[::ffff:127.0.0.1]"]
)
def test_addresses_of_the_machine_and_its_link_are_told(host: str) -> None:
    with pytest.raises(NotAllowed):
        vet_address(f"http://{host}:80/bucket?x=y")


@pytest.mark.parametrize("host", ["10.0.0.7", "192.0.2.1", "no-such-name.invalid"])
def test_other_addresses_are_asked(host: str) -> None:
    vet_address(f"http://{host}/bucket")


async def test_a_query_that_was_given_up_asks_its_bucket_no_more(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of thousands of checkpoints in a slow bucket would hold its thread for hours, and there are few."""
    monkeypatch.setattr(storage_threads, "DEADLINE_SECONDS", 0.3)
    world, threads = World(s3, s3.url), StorageThreads()

    def endless(folder: RunFolder) -> None:
        while True:
            folder.metrics_objects()

    with pytest.raises(Late):
        await threads.ask("team", "uid", lambda: world.folders.ask(world.run, endless))
    await until(lambda: not threads._places, "its thread ends")
    monkeypatch.undo()
    assert await threads.ask("team", "uid", lambda: world.ask()) == 0, "the next query has its own time"


def bounded(s3: S3, seconds: float = 20.0) -> Bucket:
    limits = Limits(document_bytes=8, data_bytes=64, objects=10, seconds=seconds)
    return Bucket(run_of(endpoint=s3.url).spec.checkpoint.s3, Credentials("test", "first", "s"), limits=limits)


def test_an_object_larger_than_it_may_be_is_not_read(s3: S3) -> None:
    assert bounded(s3).get("small")[0] == b"content"
    s3.body = b"x" * 20
    s3.declared = 20
    assert len(bounded(s3).get("metrics", data=True)[0]) == 20
    s3.body = b""  # nothing of it is waited for
    with pytest.raises(StorageError) as refusal:
        bounded(s3).get("document")
    assert refusal.value.fault is StorageFault.TOO_LARGE


def test_an_object_larger_than_its_server_said_is_not_read_to_its_end(s3: S3) -> None:
    """Of two lengths, HTTP takes that of the chunks."""
    s3.chunked, s3.body = True, b"14\r\n" + b"x" * 20 + b"\r\n0\r\n\r\n"
    with pytest.raises(StorageError, match="larger than its server said") as refusal:
        bounded(s3).get("document")
    assert refusal.value.fault is StorageFault.TOO_LARGE


def test_an_object_that_never_comes_to_its_end_is_given_up(s3: S3) -> None:
    s3.body, s3.declared, s3.pause = b"x" * 64, 64, 0.5
    began = time.monotonic()
    with pytest.raises(StorageError) as refusal:
        bounded(s3, seconds=1.0).get("metrics", data=True)
    assert refusal.value.fault is StorageFault.UNREACHABLE
    assert time.monotonic() - began < 20, "32 seconds are what the server takes"


def test_a_folder_of_more_objects_than_may_be_listed_is_refused(s3: S3) -> None:
    s3.listing = EMPTY.replace(b"<IsTruncated>", 10 * LISTED + b"<IsTruncated>")
    assert len(bounded(s3).objects("")) == 10
    s3.listing = EMPTY.replace(b"<IsTruncated>", 11 * LISTED + b"<IsTruncated>")
    with pytest.raises(StorageError) as refusal:
        bounded(s3).objects("")
    assert refusal.value.fault is StorageFault.TOO_LARGE


def test_a_run_that_names_another_bucket_is_read_from_it_at_once(s3: S3) -> None:
    """The bucket that was opened before is kept by the run, whose spec names another now."""
    world = World(s3, s3.url)
    world.ask()
    paths = len(s3.paths)
    store = world.run.spec.checkpoint.s3.model_copy(update={"bucket": "another"})
    checkpoint = world.run.spec.checkpoint.model_copy(update={"s3": store})
    world.run = world.run.model_copy(update={"spec": world.run.spec.model_copy(update={"checkpoint": checkpoint})})
    world.ask()
    assert {path.split("/")[1].partition("?")[0] for path in s3.paths[paths:]} == {"another"}


def test_a_listing_that_takes_longer_than_it_may_is_given_up(s3: S3) -> None:
    with pytest.raises(StorageError) as refusal:
        bounded(s3, seconds=-1.0).objects("")
    assert refusal.value.fault is StorageFault.UNREACHABLE


def test_the_pages_environment_names_no_server_for_a_run_that_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    limits = Limits(document_bytes=8, data_bytes=64, objects=10, seconds=20.0)
    store = run_of().spec.checkpoint.s3.model_copy(update={"endpoint": None})
    opened = Bucket(store, Credentials("test", "first", "s"), endpoint="http://127.0.0.1:9", limits=limits)
    assert opened._client.meta.endpoint_url.endswith(".amazonaws.com")


def test_keys_that_were_refused_are_not_shown_again_once_their_secret_is_gone(s3: S3) -> None:
    world = World(s3, s3.url)
    world.ask()
    before = len(s3.asked)
    s3.key, world.api.secret = "second", NotFound(f"no {SECRETS.plural}")
    for _ in range(2):
        with pytest.raises(StorageError) as refusal:
            world.ask()
        assert refusal.value.fault is StorageFault.NO_CREDENTIALS
    assert len(s3.asked) == before + 1, "that is when they were refused"


def test_folders_that_nobody_looked_at_for_longest_are_closed(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folders, "_KEPT", 1)
    world = World(s3, s3.url)
    for name in ("demo", "other"):
        world.run = run_of(name, endpoint=s3.url)
        world.ask()
    assert list(world.folders._open) == ["uid-other"]
