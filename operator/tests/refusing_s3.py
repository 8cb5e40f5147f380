"""An S3 server that gives the answers which no server on this machine gives: conflicts, overload, errors of its own.

It keeps objects and knows no signatures. It lists and deletes a thousand objects at once. With its first `refusals` it
answers as many writes. Objects in `locked` stay when their bucket's are deleted, and the answer to that says so.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

AT_ONCE = 1000
"""Largest number of objects in an answer and in a request."""


class RefusingS3:
    """Keeps objects by path, and refuses the next writes with `refusals`: status and code."""

    def __init__(self) -> None:
        self.refusals: list[tuple[int, str]] = []
        self.objects: dict[str, bytes] = {}
        self.locked: set[str] = set()
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
                bucket, _, query = self.path.partition("?")
                if "list-type=2" in query:
                    asked = parse_qs(query)
                    [after] = asked.get("continuation-token") or asked.get("start-after") or [""]
                    [prefix] = asked.get("prefix") or [""]
                    paths = {path.removeprefix(f"{bucket}/"): path for path in sorted(server.objects)}
                    keys = [key for key in paths if key > after and key.startswith(prefix)]
                    listed = "".join(
                        f"<Contents><Key>{key}</Key><Size>{len(server.objects[paths[key]])}</Size>"
                        "<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
                        for key in keys[:AT_ONCE]
                    )
                    if len(keys) > AT_ONCE:
                        listed += f"<IsTruncated>true</IsTruncated><NextContinuationToken>{keys[AT_ONCE - 1]}"
                        listed += "</NextContinuationToken>"
                    self.send(200, content=f"<ListBucketResult>{listed}</ListBucketResult>".encode())
                else:
                    self.send(200 if self.path in server.objects else 404, "NoSuchKey")

            do_HEAD = do_GET

            def do_POST(self) -> None:
                """Several objects are deleted."""
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                refused, keys = "", re.findall("<Key>(.*?)</Key>", body)
                if len(keys) > AT_ONCE:
                    self.send(400, "MalformedXML")
                    return
                for key in keys:
                    if key in server.locked:
                        refused += f"<Error><Key>{key}</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
                    else:
                        del server.objects[f"{self.path.partition('?')[0]}/{key}"]
                self.send(200, content=f"<DeleteResult>{refused}</DeleteResult>".encode())

            def send(self, status: int, code: str = "", *, content: bytes | None = None) -> None:
                if content is None:
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
        self.endpoint = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


@contextmanager
def running() -> Iterator[RefusingS3]:
    """Start one, and end it."""
    made = RefusingS3()
    try:
        yield made
    finally:
        made.http.shutdown()
        made.http.server_close()
