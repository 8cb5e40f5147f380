"""Credentials that are renewed while a program runs: a token lasts an hour, and a run lasts for days."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepcoder_client import connection, kubeconfig
from deepcoder_client.client import Client
from deepcoder_client.connection import RUNS, Connection
from deepcoder_client.errors import NoCluster, Unreachable
from deepcoder_client.kubeconfig import Overrides
from deepcoder_client.port_forward import Bearer


class Server:
    """An API server that knows one token, and notes what it was shown."""

    def __init__(self) -> None:
        self.token = "first"
        self.shown: list[str] = []
        self.done: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                shown = self.headers.get("Authorization", "")
                server.shown.append(shown)
                good = shown == f"Bearer {server.token}"
                if good:
                    server.done.append(self.command)
                answer: dict[str, Any] = {"metadata": {}, "items": []} if good else {"kind": "Status", "code": 401}
                content = json.dumps(answer).encode()
                self.send_response(200 if good else 401)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PATCH = handle_any

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def written(folder: Path, server: str, user: dict[str, Any]) -> Path:
    """A kubeconfig."""
    content = {
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path = folder / "config"
    path.write_text(yaml.safe_dump(content))
    return path


def plugin(folder: Path) -> dict[str, Any]:
    """A user whose token an exec plugin takes from the file `token`; the plugin notes its calls."""
    said = '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "%s"}}'
    program = folder / "plugin"
    program.write_text(
        f"""#!/bin/sh
cd '{folder}'
echo called >> calls
[ -s token ] || exit 1
printf '{said}' "$(cat token)"
"""
    )
    program.chmod(0o755)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(program)}}


Renewed = Callable[[Path], dict[str, Any]]


@pytest.mark.parametrize("user", [lambda folder: {"tokenFile": "token"}, plugin], ids=["tokenFile", "exec"])
def test_a_token_that_was_renewed_is_sent_once_the_old_one_is_refused(
    tmp_path: Path, server: Server, user: Renewed
) -> None:
    (tmp_path / "token").write_text("first\n")
    client = Client(kubeconfig=written(tmp_path, server.url, user(tmp_path)))
    assert client.list() == []
    (tmp_path / "token").write_text("second\n")
    server.token = "second"
    assert client.list() == []
    assert server.shown == ["Bearer first", "Bearer first", "Bearer second"]


def test_a_change_that_was_refused_with_an_old_token_is_made_once_with_the_new_one(
    tmp_path: Path, server: Server
) -> None:
    (tmp_path / "token").write_text("first")
    opened = Connection.open(kubeconfig=written(tmp_path, server.url, {"tokenFile": "token"}))
    (tmp_path / "token").write_text("second")
    server.token = "second"
    opened.patch(RUNS, "team", "demo", {"spec": {"suspend": True}})
    assert server.done == ["PATCH"]


def test_a_token_file_is_read_again_before_its_token_ends(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dashboard's page is shown the token, and refuses an old one where no API server is asked."""
    (tmp_path / "token").write_text("first")
    bearer = Bearer(Connection.open(kubeconfig=written(tmp_path, server.url, {"tokenFile": "token"})))
    (tmp_path / "token").write_text("second")
    assert bearer.token() == "first"
    monkeypatch.setattr(kubeconfig, "TOKEN_FILE_SECONDS", 0.0)
    assert bearer.token() == "second"
    for gone in ("", None):
        (tmp_path / "token").unlink() if gone is None else (tmp_path / "token").write_text(gone)
        assert bearer.token() == "second", "whoever renews it has not written it yet"


def test_a_token_file_counts_more_than_a_token_as_for_kubectl(tmp_path: Path, server: Server) -> None:
    (tmp_path / "token").write_text("first")
    user = {"token": "of-a-year-ago", "tokenFile": "token"}
    assert Client(kubeconfig=written(tmp_path, server.url, user)).list() == []


@pytest.mark.parametrize("content", [None, ""])
def test_a_token_file_that_has_none_is_named(tmp_path: Path, server: Server, content: str | None) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content)
    with pytest.raises(NoCluster, match=str(tmp_path / "token")):
        Connection.open(kubeconfig=written(tmp_path, server.url, {"tokenFile": "token"}))


def test_a_plugin_that_gives_what_was_refused_is_not_asked_each_time(tmp_path: Path, server: Server) -> None:
    """It may open a browser, and a watch looks each second."""
    (tmp_path / "token").write_text("wrong")
    client = Client(kubeconfig=written(tmp_path, server.url, plugin(tmp_path)))
    for _ in range(3):
        with pytest.raises(Unreachable, match="log in"):
            client.list()
    assert (tmp_path / "calls").read_text().split() == ["called"] * 2
    assert server.shown == ["Bearer wrong"] * 3


def test_a_plugin_that_fails_leaves_the_credentials_as_they_were(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("first")
    client = Client(kubeconfig=written(tmp_path, server.url, plugin(tmp_path)))
    monkeypatch.setattr(connection, "RENEWAL_SECONDS", 0.0)
    server.token = "second"
    (tmp_path / "token").write_text("")
    with pytest.raises(Unreachable, match="log in"):
        client.list()
    (tmp_path / "token").write_text("second")
    assert client.list() == []
    assert server.shown == ["Bearer first", "Bearer first", "Bearer second"], "and never nobody's"


def test_credentials_are_not_sent_to_another_server_than_before(tmp_path: Path, server: Server) -> None:
    """Whoever logs in to another cluster meanwhile does not mean that a command goes on there."""
    client = Client(kubeconfig=written(tmp_path, server.url, {"token": "old"}))
    written(tmp_path, server.url.replace("127.0.0.1", "localhost"), {"token": "first"})
    with pytest.raises(Unreachable, match="log in"):
        client.list()
    assert server.shown == ["Bearer old"]


def test_a_token_of_the_command_line_replaces_every_credential_of_the_user(tmp_path: Path, server: Server) -> None:
    file = written(tmp_path, server.url, {"username": "u", "password": "p", "tokenFile": "absent", "as": "jane"})
    opened = Connection.open(kubeconfig=file, overrides=Overrides(token="first"))
    assert opened.list(RUNS, None)["items"] == []
    assert opened.acting is not None, "whom it acts as is no credential"


def test_a_server_and_a_token_need_no_kubeconfig(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere/config")
    opened = Connection.open(overrides=Overrides(server=server.url, token="first"))
    assert opened.list(RUNS, None)["items"] == []
    with pytest.raises(NoCluster, match="there is no file /nowhere/config"):
        Connection.open(overrides=Overrides(token="first"))


def test_options_replace_a_part_of_the_kubeconfig_and_leave_the_file_as_it_is(tmp_path: Path, server: Server) -> None:
    file = written(tmp_path, "https://127.0.0.1:1", {"token": "first"})
    content = yaml.safe_load(file.read_text())
    content["clusters"].append({"name": "other", "cluster": {"server": server.url}})
    content["users"].append({"name": "nobody", "user": {}})
    content["contexts"][0]["context"]["user"] = "nobody"
    file.write_text(before := yaml.safe_dump(content))
    opened = Connection.open(kubeconfig=file, overrides=Overrides(cluster="other", user="u"))
    assert opened.list(RUNS, None)["items"] == []
    for wrong in (Overrides(cluster="third"), Overrides(user="third")):
        with pytest.raises(NoCluster, match="third"):
            Connection.open(kubeconfig=file, overrides=wrong)
    assert file.read_text() == before


def test_trust_of_the_command_line_replaces_that_of_the_kubeconfig(tmp_path: Path) -> None:
    file = written(tmp_path, "https://127.0.0.1:1", {"token": "first"})
    (tmp_path / "ca.crt").write_text("")
    content = yaml.safe_load(file.read_text())
    content["clusters"][0]["cluster"] |= {"certificate-authority": "/absent", "tls-server-name": "inner"}
    file.write_text(yaml.safe_dump(content))
    trusted = Overrides(certificate_authority=str(tmp_path / "ca.crt"))
    with pytest.raises(NoCluster, match="/absent"):
        Connection.open(kubeconfig=file)
    blind = Connection.open(kubeconfig=file, overrides=Overrides(insecure_skip_tls_verify=True)).configuration
    assert (blind.verify_ssl, blind.ssl_ca_cert, blind.tls_server_name) == (False, None, "inner")
    found = kubeconfig.read(kubeconfig=file, overrides=trusted).configuration
    assert (found.verify_ssl, found.ssl_ca_cert) == (True, str(tmp_path / "ca.crt"))
    moved = kubeconfig.read(
        kubeconfig=file, overrides=Overrides(server="https://127.0.0.2:1", insecure_skip_tls_verify=True)
    ).configuration
    assert (moved.host, moved.tls_server_name) == ("https://127.0.0.2:1", None)
