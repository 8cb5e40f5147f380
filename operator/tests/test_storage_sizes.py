"""Of an answer of a server that somebody else names, no more is read than a real one may have."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from deepcoder_contracts.chain import Missing
from deepcoder_operator.storage import answers, s3
from deepcoder_operator.storage.s3 import Bucket, Buckets, Credentials, StorageProblem, Target

MIB = 1024 * 1024
END = 64 * MIB
"""Where an endless answer ends, so that a client that reads it all fails instead of taking the machine's memory."""


class Server:
    """Gives each request the same answer, with the request's number for `#`, and does not say how long it is."""

    def __init__(self) -> None:
        self.status, self.answer, self.times = 200, b"", 1
        self.requests = self.whole = 0
        """Number of requests, and of answers that were read to their end."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests += 1
                self.send_response(server.status)
                self.send_header("Last-Modified", self.date_time_string())
                self.end_headers()
                answer = server.answer.replace(b"#", str(server.requests).encode())
                try:
                    for _ in range(server.times):
                        self.wfile.write(answer)
                except OSError:
                    return
                server.whole += 1

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def endless(self, piece: bytes) -> None:
        self.answer = piece * (MIB // len(piece))
        self.times = END // len(self.answer)

    def bucket(self) -> Bucket:
        target = Target(f"http://127.0.0.1:{self.http.server_port}", None, Credentials("a", "b", source="Secret s3"))
        return Buckets().open(target, "bucket")


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()  # joins the threads of all answers


def refusal(ask: Callable[[], object]) -> str:
    with pytest.raises(StorageProblem) as refused:
        ask()
    assert refused.value.problem.reason == "DocumentTooLarge"
    return refused.value.problem.message


@pytest.mark.parametrize(
    ("key", "most"), [("run/RUN.json", 64 * 1024), ("run/a/001/exit.json", 64 * 1024), ("run/s/MANIFEST.json", 4 * MIB)]
)
def test_document_that_does_not_end_is_read_up_to_what_its_kind_may_have(key: str, most: int, server: Server) -> None:
    server.endless(b"x")
    assert f"s3://bucket/{key} at http://127.0.0.1" in refusal(lambda: server.bucket().get(key))
    assert f"has more than {most} bytes" in refusal(lambda: server.bucket().get(key))
    assert server.whole == 0


def test_document_is_read_to_its_end_though_nothing_tells_its_length(server: Server) -> None:
    server.answer = b"x" * answers.MAX_RECORD_BYTES
    assert server.bucket().get("run/RUN.json")[0] == server.answer


ASKED: dict[str, Callable[[Bucket], object]] = {
    "a list of folders": lambda bucket: bucket.folders("run/"),
    "a list of objects": lambda bucket: bucket.objects("run/"),
    "a deletion": lambda bucket: bucket.delete_page("run/", ""),
}


@pytest.mark.parametrize("what", ASKED)
def test_answer_without_a_document_that_does_not_end_is_not_read_on(what: str, server: Server) -> None:
    server.endless(b"<a/>")
    assert "has more than 4194304 bytes" in refusal(lambda: ASKED[what](server.bucket()))
    assert (server.requests, server.whole) == (1, 0)


@pytest.mark.parametrize("status", [403, 404, 500])
def test_error_that_does_not_end_is_not_read_on(status: int, server: Server) -> None:
    server.status = status
    server.endless(b"x")
    for ask in (Bucket.get, Bucket.sha256):
        assert "has more than 4194304 bytes" in refusal(lambda ask=ask: ask(server.bucket(), "run/RUN.json"))
    assert (server.requests, server.whole) == (2, 0)


def test_error_of_usual_length_is_understood(server: Server) -> None:
    server.status, server.answer = 404, b"<Error><Code>NoSuchKey</Code></Error>"
    with pytest.raises(Missing):
        server.bucket().get("run/RUN.json")


def test_list_of_endless_tags_is_not_parsed(server: Server) -> None:
    server.answer = b"<a/>" * 100_000
    assert "has more than 65536 XML tags" in refusal(lambda: server.bucket().folders("run/"))


def test_list_that_goes_on_for_ever_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "MAX_LISTED", 25)
    folders = "".join(f"<CommonPrefixes><Prefix>run/{n}/</Prefix></CommonPrefixes>" for n in range(10))
    objects = "".join(
        f"<Contents><Key>{n}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
        for n in range(10)
    )
    server.answer = (
        f"<ListBucketResult>{folders}{objects}<IsTruncated>true</IsTruncated>"
        "<NextContinuationToken>page #</NextContinuationToken></ListBucketResult>"
    ).encode()
    for ask in (Bucket.folders, Bucket.objects):
        assert "has more than 25 entries" in refusal(lambda ask=ask: ask(server.bucket(), "run/"))


def test_folders_with_names_that_no_folder_of_a_run_has_are_left_out(server: Server) -> None:
    names = ("a", "b" * 100, "c" * 101)
    found = "".join(f"<CommonPrefixes><Prefix>run/{name}/</Prefix></CommonPrefixes>" for name in names)
    server.answer = f"<ListBucketResult>{found}</ListBucketResult>".encode()
    assert server.bucket().folders("run/") == ["a", "b" * 100]
