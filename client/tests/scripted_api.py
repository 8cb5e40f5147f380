"""A server that answers as an API server does: each answer is given by the test."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kubernetes import client as kubernetes

from deepcoder_client.client import Client
from deepcoder_client.connection import Connection

Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]
Asked = list[tuple[str, str, Any]]
RUN: dict[str, Any] = {
    "metadata": {
        "namespace": "team",
        "name": "demo",
        "uid": "0f0e0d0c-0000-4000-8000-000000000000",
        "resourceVersion": "5",
    },
    "spec": {
        "model": {"uri": "/models/demo"},
        "dataset": {"uri": "/data/train.jsonl"},
        "stages": [{"name": "short", "contextTokens": 64, "maxSteps": 20, "hold": True}],
        "sandbox": {"template": {}},
        "checkpoint": {"s3": {"bucket": "deepcoder", "credentialsSecretRef": {"name": "s3"}}},
    },
    "status": {"phase": "Running"},
}


def refusal(code: int, message: str) -> Answer:
    return code, {"kind": "Status", "code": code, "message": message}


class Server:
    """Answers from a list, the last of it again and again; notes what it was asked."""

    def __init__(self) -> None:
        self.asked: Asked = []
        self.answers: list[Answer | Callable[[], Answer]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                server.asked.append((self.command, self.path, body))
                answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
                status, told, *headers = answer() if callable(answer) else answer
                content = told if isinstance(told, bytes) else json.dumps(told).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                for name, value in (headers[0] if headers else {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PATCH = do_POST = handle_any

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def client(self, timeout: float = 5.0) -> Client:
        configuration = kubernetes.Configuration()
        configuration.host = f"http://127.0.0.1:{self.http.server_port}"
        return Client(connection=Connection(configuration, "team", timeout))
