"""`kubectl deepcoder dashboard` opens the page in a real browser, which keeps no key in sight."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator

import pytest
from page_tabs import PATIENCE_MS
from playwright.sync_api import Browser

from deepcoder_cli.commands import dashboard
from deepcoder_cli.proxy import Proxy

KEY = "the-key"


class Pod(http.server.BaseHTTPRequestHandler):
    """Serves a page whatever is asked for."""

    def do_GET(self) -> None:
        body = b"<p>the page</p>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pod) as pod:
        threading.Thread(target=pod.serve_forever, daemon=True).start()
        made = Proxy(0, KEY, lambda: "token", lambda: socket.create_connection(pod.server_address[:2]))
        threading.Thread(target=made.serve, daemon=True).start()
        yield made
        made.close()
        pod.shutdown()


@pytest.mark.parametrize("printed", [False, True])
def test_the_page_appears_with_its_run_and_without_the_key(
    printed: bool, proxy: Proxy, chromium: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local file is another site than the page: the cookie, which no other site can send, has to go along anyway."""
    opened: list[str] = []
    monkeypatch.setattr(dashboard.webbrowser, "open", opened.append)
    address = f"http://127.0.0.1:{proxy.port}/?key={KEY}#/runs/ml/demo"
    with dashboard.opened(address), chromium.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(address if printed else opened[0])
        page.get_by_text("the page").wait_for()
        assert page.url == f"http://127.0.0.1:{proxy.port}/#/runs/ml/demo"
