"""The dashboard's local port. Each browser connection is one request, forwarded over its own connection.

One request per connection keeps the filter simple: no second request can follow a checked one unseen. A connection that
sends nothing for `HEAD_SECONDS` is closed. An answer may take as long as the page stays open, because it is a live
stream.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from deepcoder_cli.request_filter import END, MOST_HEAD_BYTES, Reply, RequestFilter
from deepcoder_client.errors import ClientError
from deepcoder_client.port_forward import Stream

HEAD_SECONDS = 10.0
MOST_CONNECTIONS = 64
_PIECE_BYTES = 64 << 10


class Proxy:
    """The local server. It listens on the loopback interface only."""

    def __init__(self, port: int, key: str, token: Callable[[], str], dial: Callable[[], Stream]) -> None:
        """Listen on `port`; 0 chooses a free one. Raises OSError if the port is taken."""
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._filter, self._token, self._dial = RequestFilter(self.port, key), token, dial
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)

    def serve(self) -> None:
        """Serve until `close`."""
        while True:
            try:
                browser, _ = self._listener.accept()
            except OSError:
                return  # closed
            if not self._places.acquire(blocking=False):
                browser.close()
                continue
            threading.Thread(target=self._serve_one, args=(browser,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve_one(self, browser: socket.socket) -> None:
        try:
            with browser:
                self._pass(browser)
        except OSError:
            pass  # the browser or the pod is gone; what was sent until then stands
        finally:
            self._places.release()

    def _pass(self, browser: socket.socket) -> None:
        browser.settimeout(HEAD_SECONDS)
        head = b""
        while END not in head:
            piece = browser.recv(_PIECE_BYTES)
            if not piece:
                return
            head += piece
            if len(head) > MOST_HEAD_BYTES:
                browser.sendall(Reply("431 Request Header Fields Too Large", "too large").encode())
                return
        try:
            judged = self._filter.judge(head.partition(END)[0] + END, self._token())
            if isinstance(judged, Reply):
                browser.sendall(judged.encode())
                return
            pod = self._dial()
        except ClientError as error:
            browser.sendall(Reply("502 Bad Gateway", str(error)).encode())
            return
        try:
            pod.settimeout(None)
            pod.sendall(judged)
            browser.settimeout(None)  # before `_end_with` waits, which would otherwise give up after HEAD_SECONDS
            threading.Thread(target=_end_with, args=(browser, pod), daemon=True).start()
            while piece := pod.recv(_PIECE_BYTES):
                browser.sendall(piece)
        finally:
            pod.close()
            with suppress(OSError):  # the browser is gone
                browser.shutdown(socket.SHUT_RDWR)  # close() alone does not wake `_end_with`, which waits for it


def _end_with(browser: socket.socket, pod: Stream) -> None:
    """End the connection to the pod once the browser has closed its own, even if the response is a live stream."""
    try:
        while browser.recv(_PIECE_BYTES):
            pass
    except OSError:
        pass  # the browser reset the connection
    with suppress(OSError):  # the response had already ended
        pod.shutdown(socket.SHUT_RDWR)  # close() would not wake the thread that waits for the pod
