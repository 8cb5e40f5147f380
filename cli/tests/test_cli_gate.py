"""The dashboard's local port: who is let through, as whom, and who is not."""

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from aiohttp import WSMsgType, web
from hypothesis import given
from hypothesis import strategies as st
from kubernetes import client as kubernetes

from deepcoder_cli import proxy as proxies
from deepcoder_cli.commands import dashboard
from deepcoder_cli.commands.dashboard import following
from deepcoder_cli.proxy import HEAD_SECONDS, Proxy
from deepcoder_cli.request_filter import MOST_HEAD_BYTES, Reply, RequestFilter
from deepcoder_client.connection import Connection
from deepcoder_client.errors import Forbidden, NoToken, Unreachable
from deepcoder_client.port_forward import Bearer, Stream, port_forward

PORT, KEY, TOKEN = 8123, "the-key", "the-token"
COOKIE = f"deepcoder-{PORT}={KEY}"


def head(target: str = "/api/runs", *lines: str, method: str = "GET", host: str = f"127.0.0.1:{PORT}") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode()


def judged(data: bytes) -> bytes | Reply:
    return RequestFilter(PORT, KEY).judge(data, TOKEN)


def test_the_first_address_becomes_a_cookie_that_no_other_site_can_send() -> None:
    reply = judged(head(f"/?key={KEY}"))
    assert isinstance(reply, Reply)
    headers = dict(reply.headers)
    assert (reply.status, reply.media_type) == ("200 OK", "text/html")
    assert 'location.replace("/" + location.hash)' in reply.text
    assert KEY not in reply.text
    assert headers["Set-Cookie"] == f"{COOKIE}; Path=/; HttpOnly; SameSite=Strict"


@pytest.mark.parametrize("other", ['prefs={"theme":"dark"}', "a[b]=1", "flag", "theme=dark mode", "name=José", "x=a=b"])
@pytest.mark.parametrize("first", [True, False])
def test_cookies_of_other_programs_on_this_host_do_not_hide_ours(other: str, first: bool) -> None:
    """A browser sends those of all ports, the oldest first."""
    cookies = f"{other}; {COOKIE}" if first else f"{COOKIE}; {other}"
    request = head("/api/runs").decode().replace("\r\n\r\n", f"\r\nCookie: {cookies}\r\n\r\n")
    assert isinstance(judged(request.encode("latin-1")), bytes)


def test_no_program_argument_has_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody on the machine could read it there, and open the dashboard as this user."""
    shown: list[Path] = []

    def open_page(address: str) -> None:
        page = Path(unquote(urlsplit(address).path))
        assert KEY not in address
        assert f'url=http://127.0.0.1/?key={KEY}&amp;x#/runs/ml/demo"' in page.read_text()
        assert page.parent.stat().st_mode & 0o077 == 0
        shown.append(page)

    monkeypatch.setattr(dashboard.webbrowser, "open", open_page)
    with dashboard.opened(f"http://127.0.0.1/?key={KEY}&x#/runs/ml/demo"):
        assert shown[0].exists()
    assert not shown[0].parent.exists()


def test_a_request_with_the_cookie_goes_on_with_the_token_and_nothing_of_the_gates() -> None:
    sent = judged(head("/api/runs?x=1", f"Cookie: other=1; {COOKIE}", "Authorization: Bearer stolen", "Accept: */*"))
    assert isinstance(sent, bytes)
    lines = sent.decode().split("\r\n")
    assert lines[0] == "GET /api/runs?x=1 HTTP/1.1"
    assert set(lines[1:-2]) == {
        f"host: 127.0.0.1:{PORT}", "accept: */*", f"authorization: Bearer {TOKEN}", "connection: close",
    }  # fmt: skip
    assert KEY not in sent.decode()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (head("/api/runs"), "403"),
        (head("/api/runs", f"Cookie: deepcoder-{PORT}=guess"), "403"),
        (head("/?key=guess"), "403"),
        (head("/api/runs?key=" + KEY), "403"),
        (head("/", f"Cookie: {COOKIE}", host="evil.example"), "403"),
        (head("/", f"Cookie: {COOKIE}", host="127.0.0.1"), "403"),
        (head("/", f"Cookie: {COOKIE}", "Host: evil.example"), "403"),
        (head("/", f"Cookie: {COOKIE}", method="POST"), "405"),
        (head("/", f"Cookie: {COOKIE}", "Content-Length: 5"), "400"),
        (head("/", f"Cookie: {COOKIE}", "Transfer-Encoding: chunked"), "400"),
        (head("http://evil.example/", f"Cookie: {COOKIE}"), "400"),
        (head("//[", f"Cookie: {COOKIE}"), "400"),
        (head("/", f"Cookie: {COOKIE}", "X: a\nAuthorization: Bearer other"), "400"),
        (head("/", f"Cookie: {COOKIE}", " folded"), "400"),
        (head("/", f"Cookie: {COOKIE}", "Content-Length : 5"), "400"),
        (b"\r\n\r\n", "400"),
    ],
)
def test_everybody_else_is_refused(data: bytes, status: str) -> None:
    reply = judged(data)
    assert isinstance(reply, Reply)
    assert reply.status.startswith(status)


@given(st.binary(max_size=300))
def test_whatever_is_sent_without_the_key_is_refused_and_never_forwarded(data: bytes) -> None:
    reply = judged(data + b"\r\n\r\n")
    assert isinstance(reply, Reply)
    assert TOKEN.encode() not in reply.encode()


class Pod:
    """An API server that forwards to a pod which answers each request with its own head."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        application = web.Application()
        application.router.add_get("/api/v1/namespaces/{ns}/pods/{pod}/portforward", self.forward)
        application.router.add_post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", self.review)
        application.router.add_post("/api/v1/namespaces/{ns}/serviceaccounts/{name}/token", self.token)
        self.runner = web.AppRunner(application)
        self.call(self.runner.setup())
        self.call(web.TCPSite(self.runner, "127.0.0.1", 0).start())
        self.tokens = 0
        self.expires = "2999-01-01T00:00:00Z"

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def connection(self, **settings: Any) -> Connection:
        configuration = kubernetes.Configuration()
        configuration.host = f"http://127.0.0.1:{self.runner.addresses[0][1]}"
        for name, value in settings.items():
            setattr(configuration, name, value)
        return Connection(configuration, "team", 5.0)

    async def forward(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["pod"] == "page-secret":
            return web.Response(status=403)
        if request.match_info["pod"] != "page-0":
            return web.Response(status=404)
        opened = web.WebSocketResponse(protocols=("v5.channel.k8s.io", "v4.channel.k8s.io"))
        await opened.prepare(request)
        port = int(request.query["ports"]).to_bytes(2, "little")
        await opened.send_bytes(b"\x00" + port)
        await opened.send_bytes(b"\x01" + port)
        said = b""
        async for message in opened:
            assert message.type is WSMsgType.BINARY
            said += message.data[1:]
            if b"\r\n\r\n" in said:
                break
        answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + said
        await opened.send_bytes(b"\x00" + answer[:40])
        await opened.send_bytes(b"\x00" + answer[40:])
        await opened.close()
        return opened

    async def review(self, request: web.Request) -> web.Response:
        verb = (await request.json())["spec"]["resourceAttributes"]["verb"]
        return web.json_response({"status": {"allowed": verb == "create"}})

    async def token(self, request: web.Request) -> web.Response:
        self.tokens += 1
        status = {"token": f"of-{request.match_info['name']}", "expirationTimestamp": self.expires}
        return web.json_response({"status": status})

    def close(self) -> None:
        self.call(self.runner.cleanup())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(20)
        self.loop.close()


@pytest.fixture
def pod() -> Iterator[Pod]:
    made = Pod()
    yield made
    made.close()


Serve = Callable[..., Proxy]


@pytest.fixture
def serve() -> Iterator[Serve]:
    proxies: list[Proxy] = []

    def start(dial: Callable[[], Stream], first: Callable[[Proxy], None] = lambda proxy: None) -> Proxy:
        proxy = Proxy(0, KEY, lambda: TOKEN, dial)
        proxies.append(proxy)
        first(proxy)
        threading.Thread(target=proxy.serve).start()
        return proxy

    yield start
    for proxy in proxies:
        proxy.close()


def asked(proxy: Proxy, target: str, cookie: str = "") -> tuple[int, dict[str, str], str]:
    browser = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    browser.request("GET", target, headers={"Cookie": cookie} if cookie else {})
    answer = browser.getresponse()
    found = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode()
    browser.close()
    return found


def test_a_browser_reaches_the_pod_through_the_api_server_as_the_user(pod: Pod, serve: Serve) -> None:
    proxy = serve(lambda: port_forward(pod.connection(), "deepcoder", "page-0", 8090))
    status, headers, _ = asked(proxy, f"/?key={KEY}")
    assert status == 200
    status, _, text = asked(proxy, "/api/runs", headers["set-cookie"].partition(";")[0])
    assert status == 200
    assert text.startswith("GET /api/runs HTTP/1.1")
    assert f"authorization: Bearer {TOKEN}" in text
    assert asked(proxy, "/api/runs")[0] == 403


def test_a_pod_that_is_gone_is_told_in_the_browser(pod: Pod, serve: Serve) -> None:
    proxy = serve(lambda: port_forward(pod.connection(), "deepcoder", "page-9", 8090))
    status, _, text = asked(proxy, "/", f"deepcoder-{proxy.port}={KEY}")
    assert status == 502
    assert "page-9 cannot be reached" in text


def live(serve: Serve, dialled: socket.socket, pod: socket.socket) -> socket.socket:
    """A browser whose answer from the pod has begun. It has asked before it is let in: a head may take its time."""
    browsers: list[socket.socket] = []

    def ask(proxy: Proxy) -> None:
        browsers.append(socket.create_connection(("127.0.0.1", proxy.port), timeout=20))
        cookie = f"Cookie: deepcoder-{proxy.port}={KEY}"
        browsers[0].sendall(head("/api/live", cookie, host=f"127.0.0.1:{proxy.port}"))

    serve(lambda: dialled, ask)
    (browser,) = browsers
    pod.settimeout(20)
    assert pod.recv(65536).startswith(b"GET /api/live")
    pod.sendall(b"HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n")
    assert browser.recv(65536).endswith(b"data: 1\n\n")
    return browser


def test_an_answer_that_goes_on_ends_with_its_browser(serve: Serve) -> None:
    ours, theirs = socket.socketpair()
    browser = live(serve, ours, theirs)
    browser.close()
    assert theirs.recv(1) == b""
    theirs.close()


def test_a_browser_is_told_at_once_that_its_answer_is_over(serve: Serve) -> None:
    ours, theirs = socket.socketpair()
    browser = live(serve, ours, theirs)
    theirs.close()
    browser.settimeout(HEAD_SECONDS / 2)
    assert browser.recv(1) == b""
    browser.close()


def test_an_answer_may_go_on_for_longer_than_a_head_may_take(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxies, "HEAD_SECONDS", 0.3)
    ours, theirs = socket.socketpair()
    browser = live(serve, ours, theirs)
    theirs.settimeout(0.6)
    with pytest.raises(TimeoutError):
        theirs.recv(1)
    theirs.sendall(b"data: 2\n\n")
    assert browser.recv(65536) == b"data: 2\n\n"
    theirs.close()
    browser.close()


def test_a_taken_port_is_an_error_of_its_own(serve: Serve) -> None:
    proxy = serve(lambda: pytest.fail("nobody asked"))
    with pytest.raises(OSError, match="in use"):
        Proxy(proxy.port, KEY, lambda: TOKEN, lambda: pytest.fail("nobody asked"))


def test_the_token_is_the_kubeconfigs_or_an_accounts_and_a_certificate_is_none(pod: Pod) -> None:
    with_token = pod.connection(api_key={"authorization": "Bearer mine"})
    assert Bearer(with_token).token() == "mine"
    account = Bearer(with_token, "viewer")
    assert [account.token(), account.token()] == ["of-viewer"] * 2
    assert pod.tokens == 1, "it is asked for anew when it is due, not each time"
    for without in (pod.connection(), pod.connection(api_key={"authorization": "Basic bWU6cGFzcw=="})):
        with pytest.raises(NoToken, match="--service-account NAME"):
            Bearer(without)


def test_a_forward_to_nobody_is_unreachable(pod: Pod) -> None:
    with pytest.raises(Unreachable, match="cannot be reached"):
        port_forward(pod.connection(host="http://127.0.0.1:1"), "deepcoder", "page-0", 8090)


def test_a_forward_that_is_refused_names_the_permission_that_is_missing(pod: Pod) -> None:
    with pytest.raises(Forbidden, match="you lack the permission to get pods/portforward in namespace deepcoder"):
        port_forward(pod.connection(), "deepcoder", "page-secret", 8090)


def test_a_page_whose_pod_has_gone_is_read_from_another() -> None:
    ready, asked = ["old"], []

    def dial(pod: str) -> Any:
        asked.append(pod)
        if pod not in ready:
            raise Unreachable(f"{pod} is gone")
        return pod

    dialled = following("old", lambda: ready[0], dial)
    assert dialled() == "old"
    ready[:] = ["new"]
    assert (dialled(), dialled()) == ("new", "new")
    assert asked == ["old", "old", "new", "new"]


def test_an_accounts_token_is_renewed_before_it_ends(pod: Pod) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=120)
    pod.expires = soon.isoformat()
    account = Bearer(pod.connection(), "viewer")
    assert [account.token(), account.token()] == ["of-viewer"] * 2
    assert pod.tokens == 2


def test_a_head_that_never_ends_is_given_up(serve: Serve) -> None:
    proxy = serve(lambda: pytest.fail("nobody asked"))
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as browser:
        browser.sendall(
            b"GET / HTTP/1.1\r\nX: ".ljust(MOST_HEAD_BYTES + 1, b"x")
        )  # no byte is left unread, which would reset it
        assert browser.recv(65536).startswith(b"HTTP/1.1 431 ")


def test_a_connection_that_has_ended_makes_room_for_another(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxies, "MOST_CONNECTIONS", 1)
    proxy = serve(lambda: pytest.fail("nobody asked"))
    answered = 0
    for _ in range(300):  # one that comes while the place is being given back is closed
        with suppress(http.client.HTTPException, OSError):
            answered += asked(proxy, "/api/runs")[0] == 403
        if answered == 2:
            return
        time.sleep(0.1)
    pytest.fail("the second was never answered")


def test_only_this_machines_own_loopback_address_is_listened_on(serve: Serve) -> None:
    proxy = serve(lambda: pytest.fail("nobody asked"))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", proxy.port), timeout=20)
