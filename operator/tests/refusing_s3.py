"""An S3 server that gives the answers which no server on this machine gives: conflicts, overload, errors of its own.

It keeps objects and knows no signatures. With its first `refusals` it answers as many writes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class RefusingS3:
    """Keeps objects by path, and refuses the next writes with `refusals`: status and code."""

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
