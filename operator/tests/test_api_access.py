"""How the API server is found, and as whom it is asked: a pod's account, kubeconfigs, and what is wrong with either."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from aiohttp import web
from chart_account import Account
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from run_manifests import run_manifest

from deepcoder_operator.controllers import watch
from deepcoder_operator.kube import access
from deepcoder_operator.kube.access import Access, TokenFile, of_kubeconfig, of_pod
from deepcoder_operator.kube.client import Kube
from deepcoder_operator.kube.errors import NoAccess
from deepcoder_operator.kube.resources import RUNS
from devcluster.pki import Authority

PEM = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"


def with_encrypted_key() -> dict[str, str]:
    """A client certificate whose key takes a passphrase."""
    with TemporaryDirectory() as made:
        keys = Path(made)
        Authority(keys, "ca", "ca").issue("client", "client")
        key = load_pem_private_key((keys / "client.key").read_bytes(), None)
        locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"passphrase"))
        files = {"client-certificate-data": (keys / "client.crt").read_bytes(), "client-key-data": locked}
        return {field: base64.b64encode(data).decode() for field, data in files.items()}


def write(
    path: Path, *, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None, **changes: Any
) -> str:
    """A kubeconfig."""
    config: dict[str, Any] = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "a", "user": "b"}}],
        "clusters": [{"name": "a", "cluster": {"server": "https://api.example:6443/"} | (cluster or {})}],
        "users": [{"name": "b", "user": {"token": "t"} if user is None else user}],
    }
    path.write_text(yaml.safe_dump(config | changes))
    return str(path)


def shown(found: Access) -> str | None:
    return found.authorization() if found.authorization else None


def test_server_and_token_of_the_current_context_are_used(tmp_path: Path) -> None:
    found = of_kubeconfig(write(tmp_path / "k", cluster={"tls-server-name": "kubernetes", "proxy-url": "http://p:1"}))
    assert (found.server, found.server_name, found.proxy) == ("https://api.example:6443", "kubernetes", "http://p:1")
    assert shown(found) == "Bearer t"


def test_no_authorities_are_read_for_a_server_without_tls(tmp_path: Path) -> None:
    found = of_kubeconfig(write(tmp_path / "k", cluster={"server": "http://127.0.0.1:8001", "proxy-url": "http://p:1"}))
    assert (found.server, found.tls, found.proxy) == ("http://127.0.0.1:8001", None, "http://p:1")
    assert shown(found) == "Bearer t"


def test_first_of_several_files_that_names_something_is_followed(tmp_path: Path) -> None:
    first = write(tmp_path / "one", clusters=[], users=[])
    second = write(tmp_path / "two", user={"token": "second"}, **{"current-context": "other"})
    assert shown(of_kubeconfig(f"{first}:{second}")) == "Bearer second"


def test_token_in_a_file_beside_the_kubeconfig_is_read(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-a-file\n")
    assert shown(of_kubeconfig(write(tmp_path / "k", user={"tokenFile": "token"}))) == "Bearer from-a-file"


def test_name_and_password_are_sent_as_basic_authorization(tmp_path: Path) -> None:
    found = of_kubeconfig(write(tmp_path / "k", user={"username": "me", "password": "secret"}))
    assert shown(found) == "Basic " + base64.b64encode(b"me:secret").decode()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"user": {"exec": {"command": "aws"}}}, "exec"),
        ({"user": {"auth-provider": {"name": "oidc"}}}, "auth-provider"),
        ({"user": {"tokenFile": "nowhere"}}, "nowhere"),
        ({"users": []}, "'b'"),
        ({"current-context": ""}, "current-context"),
        ({"cluster": {"server": "api.example"}}, "no server"),
        ({"cluster": {"certificate-authority": "nowhere.crt"}}, "certificate-authority cannot be read"),
        ({"cluster": {"certificate-authority-data": base64.b64encode(PEM.encode()).decode()}}, "not PEM"),
        ({"user": with_encrypted_key()}, "encrypted"),
    ],
)
def test_what_cannot_be_followed_is_named(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(NoAccess, match=text):
        of_kubeconfig(write(tmp_path / "k", **changes))


def test_kubeconfig_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoAccess, match="set KUBECONFIG"):
        of_kubeconfig(str(tmp_path / "none"))


def test_kubeconfig_with_a_value_that_yaml_does_not_allow_is_named(tmp_path: Path) -> None:
    (tmp_path / "k").write_text("current-context: 2026-02-30")
    with pytest.raises(NoAccess, match=r"k cannot be read: .*set KUBECONFIG"):
        of_kubeconfig(str(tmp_path / "k"))


def test_account_without_its_authority_or_token_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoAccess, match=r"ca\.crt is missing"):
        of_pod("10.0.0.1", "443", tmp_path)


def test_token_that_the_kubelet_renews_is_read_again_and_one_that_is_gone_is_still_used(tmp_path: Path) -> None:
    path, now = tmp_path / "token", 0.0
    path.write_text("one")
    token = TokenFile(path, lambda: now)
    path.write_text("two")
    assert token() == "Bearer one"
    now = access.TOKEN_SECONDS
    assert token() == "Bearer two"
    path.unlink()
    now *= 3
    assert token() == "Bearer two"


def test_pod_with_an_address_of_ipv6_finds_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("t")
    (tmp_path / "ca.crt").write_text(PEM)
    monkeypatch.setattr(access.ssl, "create_default_context", lambda cafile: None)
    assert of_pod("fd00::1", "443", tmp_path).server == "https://[fd00::1]:443"


@pytest.mark.parametrize(
    ("server", "bypassed", "proxied"),
    [
        ("https://10.96.0.1:443", "10.0.0.0/8,.svc", False),
        ("https://10.96.0.1:443", "192.168.0.0/16, 10.96.0.1", False),
        ("https://10.96.0.1:443", "192.168.0.0/16", True),
        ("https://[fd00::1]:6443", "fd00::/8", False),
        ("https://[fd00::1]:6443", "[fd00::1]", False),
        ("https://[fd00::1]:6443", "fe80::/10", True),
        ("https://api.example:6443", "10.0.0.0/8,.example", False),
        ("https://api.example:6443", "10.0.0.0/8", True),
        ("https://api.example:6443", "*", False),
    ],
)
def test_what_no_proxy_names_is_reached_without_one(
    server: str, bypassed: str, proxied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", bypassed)
    monkeypatch.setenv("no_proxy", bypassed)
    found = of_kubeconfig(write(tmp_path / "k", cluster={"server": server}))
    assert found.proxy == ("http://proxy:3128" if proxied else None)


def test_pod_asks_its_own_cluster_without_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("t")
    (tmp_path / "ca.crt").write_text(PEM)
    monkeypatch.setattr(access.ssl, "create_default_context", lambda cafile: None)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert of_pod("10.96.0.1", "443", tmp_path).proxy is None


def test_file_of_kubeconfigs_that_is_not_there_is_passed_over(tmp_path: Path) -> None:
    assert shown(of_kubeconfig(f"{tmp_path / 'none'}:{write(tmp_path / 'k')}")) == "Bearer t"


def test_token_in_a_file_comes_before_one_in_the_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-a-file\n")
    found = of_kubeconfig(write(tmp_path / "k", user={"token": "old", "tokenFile": "token"}))
    assert shown(found) == "Bearer from-a-file"


def test_context_without_a_user_shows_nobody(tmp_path: Path) -> None:
    contexts = [{"name": "c", "context": {"cluster": "a"}}]
    assert shown(of_kubeconfig(write(tmp_path / "k", contexts=contexts))) is None


@pytest.mark.apiserver
async def test_authority_that_is_renewed_is_trusted_without_a_restart(tmp_path: Path, unused_tcp_port: int) -> None:
    """As after a rotation of the cluster's: the file changes, and then the server's certificate does."""

    def certify(life: str) -> ssl.SSLContext:
        keys = tmp_path / life
        keys.mkdir()
        Authority(keys, f"ca-{life}", "ca").issue("server", "server", serves=["127.0.0.1"])
        (tmp_path / "ca.crt").write_bytes((keys / "ca.crt").read_bytes())
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(keys / "server.crt", keys / "server.key")
        return context

    @asynccontextmanager
    async def serving(life: str) -> AsyncIterator[None]:
        async def answer(_: web.Request) -> web.Response:
            return web.json_response({"kind": life})

        app = web.Application()
        app.router.add_get("/", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", unused_tcp_port, ssl_context=certify(life)).start()
        yield
        await runner.cleanup()

    (tmp_path / "token").write_text("t")
    kubeconfig = write(
        tmp_path / "k",
        cluster={"server": f"https://127.0.0.1:{unused_tcp_port}", "certificate-authority": "ca.crt"},
    )
    async with serving("first"):
        inside, outside = of_pod("127.0.0.1", str(unused_tcp_port), tmp_path), of_kubeconfig(kubeconfig)
        clients = [Kube(reached) for reached in (inside, outside)]
        assert [(await client.read("/"))["kind"] for client in clients] == ["first"] * 2
    try:
        async with serving("second"):
            assert [(await client.read("/"))["kind"] for client in clients] == ["second"] * 2
    finally:
        for client in clients:
            await client.close()


async def test_account_that_is_mounted_into_a_pod_is_let_in(account: Account, tmp_path: Path) -> None:
    config = json.loads(account.kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    mounted = tmp_path / "account"
    mounted.mkdir()
    (mounted / "token").write_text(user["token"])
    (mounted / "ca.crt").write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
    server = urlsplit(cluster["server"])
    kube = Kube(of_pod(str(server.hostname), str(server.port), mounted))
    try:
        _, version = await kube.list(RUNS)
    finally:
        await kube.close()
    assert int(version) > 0


class Heard:
    """What kopf tells, by name."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def seen(self, obj: dict[str, Any]) -> None:
        self.names.add(obj["metadata"]["name"])

    gone = seen


@pytest.mark.apiserver
async def test_kopf_watches_as_whom_the_kubeconfig_names(
    account: Account, kube: Kube, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token in a file beside it, and a server whose certificate has another name than its address."""
    config = json.loads(account.kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    (tmp_path / "token").write_text(user.pop("token"))
    (tmp_path / "ca.crt").write_bytes(base64.b64decode(cluster.pop("certificate-authority-data")))
    user["tokenFile"], cluster["certificate-authority"] = "token", "ca.crt"
    cluster["tls-server-name"] = "kubernetes.default.svc"
    (tmp_path / "config").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    heard: Any = Heard()
    thread = watch._KopfThread(heard, asyncio.get_running_loop(), ())
    thread.start()
    try:
        await kube.create(run_manifest(namespace, "watched"))
        async with asyncio.timeout(30):
            while "watched" not in heard.names:
                assert not thread.ended.is_set(), "kopf has ended"
                await asyncio.sleep(0.05)
    finally:
        thread.stop()
        async with asyncio.timeout(30):
            await thread.ended.wait()
