"""Credentials that are renewed while a program runs: a token lasts an hour, and a run lasts for days."""

from __future__ import annotations

import base64
import datetime
import gc
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deepcoder_client import connection, kubeconfig
from deepcoder_client.client import Client
from deepcoder_client.connection import RUNS, Connection
from deepcoder_client.errors import NoCluster, Unreachable
from deepcoder_client.port_forward import Bearer
from deepcoder_client.settings import Overrides


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


def pair(folder: Path, file: str, name: str) -> None:
    """A key and a certificate that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now, names = datetime.datetime.now(datetime.UTC), [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / f"{file}.crt").write_bytes(made.public_bytes(pem))
    (folder / f"{file}.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[tuple[str, list[str], set[str]]]:
    """An API server that knows users by certificate: its address, who has asked, and whom it refuses."""
    asked, refused = list[str](), set[str]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            assert isinstance(self.connection, ssl.SSLSocket)
            shown: Any = self.connection.getpeercert()
            asked.append(shown["subject"][0][0][1])
            content = json.dumps({"metadata": {}, "items": []}).encode()
            self.send_response(401 if asked[-1] in refused else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    for name in ("server", "old", "new"):
        pair(tmp_path, name, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    for name in ("old", "new"):
        context.load_verify_locations(tmp_path / f"{name}.crt")
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.socket = context.wrap_socket(http.socket, server_side=True)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"https://127.0.0.1:{http.server_port}", asked, refused
    http.shutdown()
    http.server_close()


def test_a_certificate_whose_files_were_renewed_is_shown_once_the_old_one_is_refused(
    tmp_path: Path, tls: tuple[str, list[str], set[str]]
) -> None:
    """A connection that stays open goes on with the certificate of the day on which it was opened."""
    url, asked, refused = tls
    for end in ("crt", "key"):
        (tmp_path / f"user.{end}").write_bytes((tmp_path / f"old.{end}").read_bytes())
    file = written(tmp_path, url, {"client-certificate": "user.crt", "client-key": "user.key"})
    content = yaml.safe_load(file.read_text())
    content["clusters"][0]["cluster"]["certificate-authority"] = "server.crt"
    file.write_text(yaml.safe_dump(content))
    client = Client(kubeconfig=file)
    assert client.list() == []
    for end in ("crt", "key"):
        (tmp_path / f"user.{end}").write_bytes((tmp_path / f"new.{end}").read_bytes())
    refused.add("old")
    assert client.list() == []
    assert asked == ["old", "old", "new"]


@pytest.mark.parametrize("memory", [True, False], ids=["in memory", "in a folder"])
def test_a_key_in_the_kubeconfig_is_in_no_file_that_a_killed_process_would_leave(
    tmp_path: Path, tls: tuple[str, list[str], set[str]], monkeypatch: pytest.MonkeyPatch, memory: bool
) -> None:
    """The kubernetes package leaves its files if a signal ends the process; where there is no memory for them, so do
    we, but they go with the connection."""
    url, asked, _ = tls
    if not memory:
        monkeypatch.delattr("os.memfd_create")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    def inline(name: str) -> str:
        return base64.b64encode((tmp_path / name).read_bytes()).decode()

    file = written(
        tmp_path,
        url,
        {"token": "t", "client-certificate-data": inline("old.crt"), "client-key-data": inline("old.key")},
    )
    content = yaml.safe_load(file.read_text())
    content["clusters"][0]["cluster"]["certificate-authority-data"] = inline("server.crt")
    file.write_text(yaml.safe_dump(content))
    opened = Connection.open(kubeconfig=file)
    assert opened.list(RUNS, None)["items"] == []
    assert opened.list(RUNS, None)["items"] == [], "and after the loader has looked at its token once more"
    assert asked == ["old", "old"]
    key = Path(opened.configuration.key_file)
    assert key.read_bytes() == (tmp_path / "old.key").read_bytes()
    assert bool(list(temporary.iterdir())) is not memory
    del opened
    gc.collect()
    assert list(temporary.iterdir()) == []
    assert not (key.is_symlink() and "kubeconfig" in str(key.readlink())), "the number may be another file's by now"
