"""The bucket that does not take the demo's files: said in a line, with what to look at."""

import base64
import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from deepcoder_demo.data import UploadFailed, advice, upload
from deepcoder_demo.ready import past_proxies
from deepcoder_demo.settings import S3Access


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[S3Access]:
    """An HTTP server that answers every request with one status."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(request.param)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_PUT = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05}).start()
    url = f"http://127.0.0.1:{httpd.server_port}"
    yield S3Access(url, url, "team-ml", "us-east-1", "key", "secret")
    httpd.shutdown()
    httpd.server_close()


@pytest.mark.parametrize(
    ("server", "said"), [(403, "AWS_SECRET_ACCESS_KEY"), (404, "DEEPCODER_S3_BUCKET")], indirect=["server"]
)
def test_a_bucket_that_refuses_is_named_with_what_to_check(server: S3Access, said: str, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n")
    with pytest.raises(UploadFailed, match=rf"into bucket team-ml at {server.endpoint}: .*{said}"):
        upload(tmp_path, server)


def test_a_server_that_does_not_answer_is_a_matter_of_its_url() -> None:
    assert "DEEPCODER_S3_HOST_ENDPOINT" in advice(EndpointConnectionError(endpoint_url="http://nowhere"))


@pytest.mark.parametrize("server", [403], indirect=True)
def test_a_server_on_this_machine_is_reached_past_a_proxy(
    server: S3Access, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.delenv("no_proxy", raising=False)
    past_proxies(os.environ)
    (tmp_path / "train.jsonl").write_text("{}\n")
    with pytest.raises(UploadFailed, match="AWS_SECRET_ACCESS_KEY"):  # it has answered
        upload(tmp_path, server)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "127.0.0.1,localhost"),
        ({"NO_PROXY": "example.org"}, "example.org,127.0.0.1,localhost"),
        ({"no_proxy": "a", "NO_PROXY": "b"}, "a,127.0.0.1,localhost"),
        ({"NO_PROXY": "*"}, "*"),
    ],
)
def test_what_is_reached_past_proxies_already_stays_so(before: dict[str, str], after: str) -> None:
    past_proxies(before)
    assert before == {"no_proxy": after, "NO_PROXY": after}


def test_only_files_that_the_bucket_does_not_have_as_they_are_now_are_sent(tmp_path: Path) -> None:
    def checksum(data: bytes) -> str:
        return base64.b64encode(hashlib.sha256(data).digest()).decode()

    stored = {"/team-ml/demo/same.jsonl": checksum(b"same"), "/team-ml/demo/model/old.bin": checksum(b"before")}
    sent: dict[str, tuple[bytes, str | None]] = {}
    tokens: set[str | None] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            tokens.add(self.headers.get("x-amz-security-token"))
            self.send_response(200 if self.path in stored else 404)
            self.send_header("x-amz-checksum-sha256", stored.get(self.path, ""))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            sent[self.path] = data, self.headers.get("x-amz-checksum-sha256")
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    (tmp_path / "model").mkdir()
    for name, text in {"same.jsonl": "same", "model/old.bin": "after", "new.jsonl": "new"}.items():
        (tmp_path / name).write_text(text)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05}).start()
        url = f"http://127.0.0.1:{httpd.server_port}"
        try:
            assert upload(tmp_path, S3Access(url, url, "team-ml", "us-east-1", "key", "secret", "of-an-hour")) == 2
        finally:
            httpd.shutdown()
    assert tokens == {"of-an-hour"}
    assert sent == {
        "/team-ml/demo/model/old.bin": (b"after", checksum(b"after")),
        "/team-ml/demo/new.jsonl": (b"new", checksum(b"new")),
    }
