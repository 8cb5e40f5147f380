"""Kubeconfigs as kubectl reads them: whoever types `kubectl deepcoder` means kubectl's cluster, as kubectl's user."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepcoder_client.client import Client
from deepcoder_client.connection import Connection
from deepcoder_client.contexts import context_names
from deepcoder_client.driver_log import driver_lines
from deepcoder_client.errors import NoCluster, NoToken, Refused, StorageError, Unreachable
from deepcoder_client.port_forward import Bearer, port_forward
from deepcoder_client.storage import Bucket, Credentials
from deepcoder_contracts.api.run_spec import S3

CLOSED = "http://127.0.0.1:1"
ADMIN = {"token": "of-an-administrator"}


def written(path: Path, *, current: str | None = "here", server: str = CLOSED, user: Any = ADMIN) -> Path:
    """A kubeconfig with the context `here` in the namespace that the file is named after."""
    name = path.name
    content: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": server}}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": name}}],
    }
    if current is not None:
        content["current-context"] = name if current == "here" else current
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("first", ["one", None, ""])
def test_of_several_files_the_first_that_names_a_current_context_decides(tmp_path: Path, first: str | None) -> None:
    files = [
        written(tmp_path / "one", current=first),
        tmp_path / "absent",
        written(tmp_path / "two"),
        written(tmp_path / "three"),
    ]
    chosen = Connection.open(kubeconfig=":".join(map(str, files)))
    assert chosen.namespace == (first or "two")


def test_a_context_asked_for_by_name_is_found_in_any_file(tmp_path: Path) -> None:
    files = [written(tmp_path / "one"), written(tmp_path / "two", current=None)]
    assert Connection.open("two", ":".join(map(str, files))).namespace == "two"


@pytest.fixture
def seen() -> Iterator[tuple[str, list[list[tuple[str, str]]]]]:
    """An API server's address, and the headers of each request it gets."""
    asked: list[list[tuple[str, str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append([(name.lower(), value) for name, value in self.headers.items()])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"metadata": {}, "items": []}')

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


ACTING = {
    **ADMIN,
    "as": "jané",
    "as-uid": "7",
    "as-groups": ["team-a", "team-b"],
    "as-user-extra": {"example.org/Scopes": ["read", "list"]},
}


def test_a_kubeconfig_that_acts_as_somebody_has_every_request_say_so(
    tmp_path: Path, seen: tuple[str, list[list[tuple[str, str]]]]
) -> None:
    """Without these headers the API server lets the request do what the administrator behind it may do."""
    server, asked = seen
    client = Client(kubeconfig=written(tmp_path / "one", server=server, user=ACTING))
    assert client.list() == []
    said = [(name, value) for name, value in asked[0] if name.startswith(("impersonate-", "authorization"))]
    assert sorted(said) == [
        ("authorization", "Bearer of-an-administrator"),
        ("impersonate-extra-example.org%2fscopes", "list"),
        ("impersonate-extra-example.org%2fscopes", "read"),
        ("impersonate-group", "team-a"),
        ("impersonate-group", "team-b"),
        ("impersonate-uid", "7"),
        ("impersonate-user", "jané".encode().decode("latin-1")),
    ]


def test_groups_without_a_user_to_act_as_are_refused_as_kubectl_does(tmp_path: Path) -> None:
    file = written(tmp_path / "one", user={**ADMIN, "as-groups": ["team-a"]})
    with pytest.raises(NoCluster, match="as-groups or as-user-extra without as"):
        Connection.open(kubeconfig=file)


def test_who_acts_as_somebody_opens_no_socket_and_shows_no_token_as_themselves(tmp_path: Path) -> None:
    """Neither can say for whom it is opened: it would show what the administrator may see."""
    connection = Connection.open(kubeconfig=written(tmp_path / "one", user=ACTING))
    connection.can_i = lambda *_: True  # type: ignore[method-assign]
    with pytest.raises(Refused, match=r"acts as jané.*users\[\]\.user\.as"):
        list(driver_lines(connection, "team", "demo-head", tail=1, follow=False))
    with pytest.raises(Refused, match="acts as jané"):
        port_forward(connection, "team", "page", 8090)
    for account in (None, "viewer"):
        with pytest.raises(NoToken, match="acts as jané"):
            Bearer(connection, account)


@pytest.mark.parametrize(
    "changed",
    [
        {"contexts": [{"name": "one", "context": "one"}]},
        {"contexts": [{"name": "one", "context": []}]},
        {"clusters": [{"name": "one", "cluster": {"server": ["https://one:6443"]}}]},
        {"users": [{"name": "one", "user": "one"}]},
        {"users": [{"name": "one", "user": [None]}]},
        {"users": [{"name": "one", "user": {"as": "jane", "as-user-extra": "scopes"}}]},
    ],
)
def test_a_kubeconfig_with_something_else_in_a_fields_place_is_told(tmp_path: Path, changed: dict[str, Any]) -> None:
    file = written(tmp_path / "one")
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changed))
    with pytest.raises(NoCluster, match="does not hold one"):
        Connection.open(kubeconfig=file)


def test_contexts_of_a_file_that_is_no_kubeconfig_are_none(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("current-context: !!bool one")
    with pytest.raises(NoCluster):
        context_names(tmp_path / "one")


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy for all addresses, which reaches none of this machine's."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, CLOSED)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("proxied")
def test_servers_on_this_machine_are_reached_past_the_proxy_as_kubectl_reaches_them(
    tmp_path: Path, seen: tuple[str, list[list[tuple[str, str]]]]
) -> None:
    """A cluster in containers, or at the end of a tunnel: the proxy would get the token, and could not pass it on."""
    server, asked = seen
    assert Client(kubeconfig=written(tmp_path / "one", server=server)).list() == []
    bucket = Bucket(S3(bucket="runs", endpoint=server), Credentials("keys", "key", "secret"))
    with suppress(StorageError):  # what answers is no S3 server
        bucket.folders("ml/")
    assert len(asked) > 1, "both were"


@pytest.mark.usefixtures("proxied")
def test_a_connection_into_a_pod_goes_past_the_proxy_as_well(
    tmp_path: Path, seen: tuple[str, list[list[tuple[str, str]]]]
) -> None:
    server, asked = seen
    connection = Connection.open(kubeconfig=written(tmp_path / "one", server=server))
    connection.can_i = lambda *_: True  # type: ignore[method-assign]
    with pytest.raises(Unreachable):  # what answers opens no sockets
        list(driver_lines(connection, "team", "demo-head", tail=1, follow=False))
    with pytest.raises(Unreachable):
        port_forward(connection, "team", "page", 8090)
    assert len(asked) == 2


def test_a_proxy_that_the_kubeconfig_itself_names_is_used(
    tmp_path: Path, seen: tuple[str, list[list[tuple[str, str]]]]
) -> None:
    server, asked = seen
    file = written(tmp_path / "one", server=server)
    content = yaml.safe_load(file.read_text())
    content["clusters"][0]["cluster"]["proxy-url"] = CLOSED
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(Unreachable):
        Client(kubeconfig=file).list()
    assert asked == []
