"""Checks each browser request to the dashboard's local port: forwards it with the user's token, or refuses it. Pure.

Every program and every web page on this machine can reach the port, and what passes it acts in the user's name. So a
request must name this host (a page elsewhere that resolves its own name to 127.0.0.1 does not), and must show a key
that only the browser was given: in the first URL, and from then on in a cookie that no other site's page can send. The
token is added to each request's head, and the browser never sees it. Bytes in, bytes out.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

MOST_HEAD_BYTES = 64 << 10
END = b"\r\n\r\n"
_METHODS = ("GET", "HEAD")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OURS = frozenset({"authorization", "cookie", "connection", "keep-alive", "proxy-connection", "upgrade", "te"})
"""Browser headers that are not forwarded: we set our own, or they apply to this connection only."""

_GO_ON = """<!doctype html><title>DeepCoder</title>
<script>location.replace("/" + location.hash)</script>
<noscript><a href="/">Open the dashboard</a></noscript>
"""
"""What the browser gets for the key. A redirect from a page of another site, as a local file is one, would be followed
without the cookie; this page asks for itself, and leaves the key out of the history."""


@dataclass(frozen=True)
class Reply:
    """A response of the filter itself."""

    status: str
    text: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    media_type: str = "text/plain"

    def encode(self) -> bytes:
        """Return the response's bytes."""
        body = self.text.encode()
        own = (
            *self.headers,
            ("Content-Type", f"{self.media_type}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
        )
        lines = "".join(f"{name}: {value}\r\n" for name, value in own)
        return f"HTTP/1.1 {self.status}\r\n{lines}\r\n".encode() + body


class RequestFilter:
    """The filter of one local port."""

    def __init__(self, port: int, key: str) -> None:
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._key = key
        self.cookie = f"deepcoder-{port}"
        """Name of the cookie; it contains the port because all ports of a host share cookies."""

    def judge(self, head: bytes, token: str) -> bytes | Reply:
        """Return the request head to forward, including its end, or the response that refuses it."""
        request = _read(head)
        if request is None:
            return Reply("400 Bad Request", "this is not a valid request")
        method, target, headers = request
        hosts = [value for name, value in headers if name == "host"]
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return Reply("403 Forbidden", "the request is for another host")
        if method not in _METHODS:
            return Reply("405 Method Not Allowed", "the page is read-only", (("Allow", ", ".join(_METHODS)),))
        if not target.startswith("/") or any(
            n in ("content-length", "transfer-encoding") and v != "0" for n, v in headers
        ):
            return Reply("400 Bad Request", "a path is expected, and no body")
        try:
            address = urlsplit(target)
        except ValueError:  # a path that begins like the name of a host, such as //[
            return Reply("400 Bad Request", "this is not a valid path")
        given = parse_qs(address.query).get("key", [])
        if address.path == "/" and given:
            if not self._right(given[0]):
                return Reply("403 Forbidden", "this address is from an earlier start: open the one printed last")
            cookie = f"{self.cookie}={self._key}; Path=/; HttpOnly; SameSite=Strict"
            return Reply("200 OK", _GO_ON, (("Set-Cookie", cookie), ("Referrer-Policy", "no-referrer")), "text/html")
        if not self._right(self._shown(headers)):
            return Reply("403 Forbidden", "open the address that `kubectl deepcoder dashboard` printed")
        kept = "".join(f"{name}: {value}\r\n" for name, value in headers if name not in _OURS)
        own = f"authorization: Bearer {token}\r\nconnection: close\r\n"
        return f"{method} {target} HTTP/1.1\r\n{kept}{own}\r\n".encode("latin-1")

    def _shown(self, headers: list[tuple[str, str]]) -> str:
        """Return the value of our cookie. Other programs on this host set cookies that a stricter reader refuses."""
        pairs = (pair.strip() for name, value in headers if name == "cookie" for pair in value.split(";"))
        ours = f"{self.cookie}="
        return next((pair.removeprefix(ours) for pair in pairs if pair.startswith(ours)), "")

    def _right(self, key: str) -> bool:
        return hmac.compare_digest(key.encode(), self._key.encode())


def _read(head: bytes) -> tuple[str, str, list[tuple[str, str]]] | None:
    """Parse method, target and headers. Returns None if servers could interpret the head differently."""
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not all(words) or not words[2].startswith("HTTP/1."):
        return None
    if _CONTROL.search("".join([first, *lines])):
        return None
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _NAME.fullmatch(name):
            return None
        headers.append((name.lower(), value.strip()))
    return words[0], words[1], headers
