"""Calls through an HTTP proxy: tried again as direct ones are, and what is said to be the cause where they fail."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client as kubernetes

from deepcoder_client import connection
from deepcoder_client.client import Client
from deepcoder_client.connection import Connection
from deepcoder_client.errors import NoCluster, Unreachable


class _Refuses(BaseHTTPRequestHandler):
    """A proxy that cannot reach the API server."""

    def do_CONNECT(self) -> None:
        self.send_error(502)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Runs(BaseHTTPRequestHandler):
    """Lists one run, whoever is asked for it: an API server, or a proxy before one."""

    def do_GET(self) -> None:
        content = json.dumps({"metadata": {}, "items": [{"metadata": {"namespace": "team", "name": "demo"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "by a proxy"])
def test_a_read_is_tried_again_where_nothing_listens_yet(monkeypatch: pytest.MonkeyPatch, proxied: bool) -> None:
    late = ThreadingHTTPServer(("127.0.0.1", 0), _Runs, bind_and_activate=False)
    late.daemon_threads = True
    late.server_bind()
    address = f"http://127.0.0.1:{late.server_port}"
    pauses: list[float] = []

    def listen(seconds: float) -> None:
        if not pauses:
            late.server_activate()
            threading.Thread(target=late.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        pauses.append(seconds)

    monkeypatch.setattr(connection.time, "sleep", listen)
    configuration = kubernetes.Configuration()
    configuration.host = "http://cluster.example" if proxied else address
    configuration.proxy, configuration.no_proxy = (address, "") if proxied else (None, "*")
    try:
        found = Client(connection=Connection(configuration, "team", 30.0)).raw_list()
    finally:
        if pauses:
            late.shutdown()
        late.server_close()
    assert [run["metadata"]["name"] for run in found] == ["demo"]
    assert len(pauses) == 1


def test_a_proxy_that_cannot_be_reached_is_said_to_be_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection.time, "sleep", lambda seconds: None)
    configuration = kubernetes.Configuration()
    configuration.host, configuration.proxy, configuration.no_proxy = "http://cluster.example", "http://127.0.0.1:1", ""
    told = r"http://cluster.example does not answer: no connection to the proxy: Failed to [^()]*refused; is it up"
    with pytest.raises(Unreachable, match=told):
        Client(connection=Connection(configuration, "team")).list()


def test_a_proxy_that_refuses_to_connect_is_not_said_to_be_out_of_reach() -> None:
    """It answers, so its address is right: the API server behind it, or the user's access to it, is the problem."""
    configuration = kubernetes.Configuration()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refuses) as proxy:
        threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        configuration.host, configuration.no_proxy = "https://cluster.example", ""
        configuration.proxy = f"http://127.0.0.1:{proxy.server_port}"
        told = "not answer: no connection through the proxy: Tunnel connection failed: 502 Bad Gateway; is it up"
        try:
            with pytest.raises(Unreachable, match=told):
                Client(connection=Connection(configuration, "team", 30.0)).list()
        finally:
            proxy.shutdown()


def kubeconfig(path: Path, **cluster: str) -> Path:
    content = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "one", "user": "me", "namespace": "team"}}],
        "clusters": [{"name": "one", "cluster": {"server": "http://cluster.example", **cluster}}],
        "users": [{"name": "me", "user": {"token": "mine"}}],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("place", ["kubeconfig", "environment"])
def test_a_proxy_without_a_scheme_is_used_as_by_kubectl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    for name in ("HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Runs) as proxy:
        threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        address = f"127.0.0.1:{proxy.server_port}"
        monkeypatch.setenv("http_proxy", address if place == "environment" else "")
        file = kubeconfig(tmp_path / "config", **({"proxy-url": address} if place == "kubeconfig" else {}))
        try:
            found = Client(kubeconfig=file).raw_list()
        finally:
            proxy.shutdown()
    assert [run["metadata"]["name"] for run in found] == ["demo"]


@pytest.mark.parametrize("address", ["ftp://proxy.example", "http://["])
def test_a_proxy_that_cannot_be_one_is_told(tmp_path: Path, address: str) -> None:
    with pytest.raises(NoCluster, match=r"the proxy .* names cannot be used"):
        Client(kubeconfig=kubeconfig(tmp_path / "config", **{"proxy-url": address}))
