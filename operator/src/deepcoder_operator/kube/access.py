"""Finds the API server and our credentials: a pod's service account, or a kubeconfig.

The official client is not used for this: its import alone takes half a second and many megabytes, for types of all
kinds that nothing here uses. kopf's connection uses the same settings (`session`). Credentials must be in files: a
kubeconfig that runs a program to get them is refused, with a message that says how to fix it. Proxies of the
environment apply only to kubeconfigs, because a pod uses an address inside the cluster, which no proxy can reach.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
import ssl
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import yaml

from deepcoder_operator.kube.errors import NoAccess

TOKEN_SECONDS = 60.0
"""Time, in seconds, after which a token file is read again. The kubelet renews it long before the old token expires."""

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class TokenFile:
    """A bearer token in a file that somebody else, such as the kubelet, renews."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the token. Raises `NoAccess` if there is none."""
        self._path, self._clock = path, clock
        self._token, self._until = _token(path), clock() + TOKEN_SECONDS

    def __call__(self) -> str:
        """Return the Authorization header. While the file cannot be read, the previous token is used."""
        if self._clock() >= self._until:
            self._until = self._clock() + TOKEN_SECONDS
            with suppress(NoAccess):
                self._token = _token(self._path)
        return f"Bearer {self._token}"


@dataclass(frozen=True)
class Access:
    """How to connect to a server and authenticate to it."""

    server: str
    """URL, without a trailing slash."""

    tls: ssl.SSLContext | None = None
    """Authorities for the server's certificate, and the client's certificate. None: the system's authorities."""

    authorization: Callable[[], str] | None = None
    """Returns the Authorization header."""

    server_name: str | None = None
    """Name in the server's certificate, if it differs from the host."""

    proxy: str | None = None

    reread: Callable[[], None] = lambda: None
    """Reads certificates from their files again, for later connections. Call it when the server's certificate is not
    trusted, because the authority may have been renewed."""


def find() -> Access:
    """Return the access of the pod's service account, or of KUBECONFIG (or ~/.kube/config). Raises `NoAccess`."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
    if host and port and not os.environ.get("KUBECONFIG"):
        return of_pod(host, port, _ACCOUNT)
    return of_kubeconfig(os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser()))


def of_pod(host: str, port: str, account: Path) -> Access:
    """Return the access of the service account that Kubernetes mounts into a pod. Raises `NoAccess`."""
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    authority = account / "ca.crt"
    if not authority.is_file():
        raise NoAccess(f"{authority} is missing: mount the pod's service account token")
    tls = ssl.create_default_context(cafile=str(authority))
    return Access(
        server=server,
        tls=tls,
        authorization=TokenFile(account / "token"),
        reread=lambda: tls.load_verify_locations(cafile=str(authority)),
    )


def of_kubeconfig(paths: str) -> Access:
    """Return the access of the current context. If several files define an entry, the first one counts. Raises
    `NoAccess`."""
    config = _Kubeconfig([Path(p).expanduser() for p in paths.split(os.pathsep) if p])
    context, where = config.context()
    cluster, cluster_file = config.entry("clusters", "cluster", context.get("cluster"), where)
    nobody: tuple[Mapping[str, Any], Path] = ({}, where)
    user, user_file = config.entry("users", "user", context["user"], where) if context.get("user") else nobody
    for field in ("exec", "auth-provider"):
        if user.get(field):
            raise NoAccess(
                f"{user_file}: user {context['user']} has {field}, which the operator does not support: name a user "
                "with a token, tokenFile or client certificate"
            )
    server = str(cluster.get("server") or "").rstrip("/")
    scheme = urlsplit(server).scheme
    if scheme not in ("http", "https"):
        raise NoAccess(f"{cluster_file}: cluster {context['cluster']} has no server with http:// or https://: set it")
    authorization = _authorization(_Files(user, user_file))
    if scheme == "http":  # such as kubectl proxy; without TLS there is no need to load the system's authorities
        return Access(server, authorization=authorization, proxy=cluster.get("proxy-url") or _proxy_for(server))
    certificates = _Files(cluster, cluster_file), _Files(user, user_file)
    tls = _tls(*certificates)
    return Access(
        server=server,
        tls=tls,
        reread=lambda: _load(tls, *certificates),
        authorization=authorization,
        server_name=cluster.get("tls-server-name"),
        proxy=cluster.get("proxy-url") or _proxy_for(server),
    )


class _Kubeconfig:
    """Several kubeconfig files, merged."""

    def __init__(self, paths: list[Path]) -> None:
        self._files: list[tuple[Path, Mapping[str, Any]]] = []
        for path in [p for p in paths if p.exists()] or paths:  # like kubectl, ignore missing files
            try:
                found = yaml.safe_load(path.read_text()) or {}
            except (OSError, yaml.YAMLError, ValueError, LookupError, AttributeError) as e:  # the parser's own, too
                raise NoAccess(f"{path} cannot be read: {e}: set KUBECONFIG to a kubeconfig") from e
            if not isinstance(found, Mapping):
                raise NoAccess(f"{path} is not a kubeconfig: set KUBECONFIG to one")
            self._files.append((path, found))

    def context(self) -> tuple[Mapping[str, Any], Path]:
        for path, found in self._files:
            if name := found.get("current-context"):
                return self.entry("contexts", "context", name, path)
        raise NoAccess(f"no current-context in {', '.join(str(p) for p, _ in self._files)}: set one")

    def entry(self, kind: str, field: str, name: object, where: Path) -> tuple[Mapping[str, Any], Path]:
        """Return an entry by name, and the file that contains it."""
        for path, found in self._files:
            for item in found.get(kind) or ():
                if item.get("name") == name:
                    return item.get(field) or {}, path
        raise NoAccess(f"{where} names {field} {name!r}, which is not among {kind}: add it")


class _Files:
    """Files of a kubeconfig entry. Each is named by a field, or included under `<field>-data`."""

    def __init__(self, entry: Mapping[str, Any], where: Path) -> None:
        self.entry, self._where = entry, where

    def read(self, field: str) -> bytes | None:
        data, path = self.entry.get(f"{field}-data"), self.path(field)
        try:
            if data:
                return base64.b64decode("".join(str(data).split()), validate=True)
            return path.read_bytes() if path else None
        except (OSError, binascii.Error, ValueError) as e:
            raise NoAccess(f"{self._where}: {field} cannot be read: {e}") from e

    def path(self, field: str) -> Path | None:
        """Return the path of the file. Relative paths are relative to the kubeconfig."""
        path = self.entry.get(field)
        return self._where.parent / Path(path).expanduser() if path else None


def _tls(cluster: _Files, user: _Files) -> ssl.SSLContext:
    try:
        authority = cluster.read("certificate-authority")
        context = ssl.create_default_context(cadata=authority.decode() if authority else None)
        if cluster.entry.get("insecure-skip-tls-verify"):
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        _load(context, cluster, user)
    except (ssl.SSLError, ValueError) as e:
        raise NoAccess(f"the certificates of the kubeconfig are not PEM: {e}") from e
    return context


def _load(context: ssl.SSLContext, cluster: _Files, user: _Files) -> None:
    """Add the cluster's current authority to the trusted ones, and use the user's current certificate."""
    if authority := cluster.read("certificate-authority"):
        context.load_verify_locations(cadata=authority.decode())
    certificate, key = user.read("client-certificate"), user.read("client-key")
    if certificate and key:
        with tempfile.TemporaryDirectory() as directory:  # ssl loads certificates only from files
            path = Path(directory) / "client.pem"
            path.touch(mode=0o600)
            path.write_bytes(certificate + b"\n" + key)
            context.load_cert_chain(path, password=_nobody_to_ask)


def _nobody_to_ask() -> str:
    """Refuse an encrypted key. Without this callback, the library would wait for a passphrase at the terminal."""
    raise NoAccess("the client-key of the kubeconfig is encrypted: name one that is not")


def _authorization(user: _Files) -> Callable[[], str] | None:
    if path := user.path("tokenFile"):
        return TokenFile(path)
    if token := user.entry.get("token"):
        return lambda: f"Bearer {token}"
    if name := user.entry.get("username"):
        basic = base64.b64encode(f"{name}:{user.entry.get('password') or ''}".encode()).decode()
        return lambda: f"Basic {basic}"
    return None


def _token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except OSError as e:
        raise NoAccess(f"the token {path} cannot be read: {e}") from e
    if not token:
        raise NoAccess(f"the token {path} is empty")
    return token


def _proxy_for(server: str) -> str | None:
    """Return the proxy for a server from the environment, which is read as kubectl reads HTTPS_PROXY and NO_PROXY."""
    url, named = urlsplit(server), getproxies_environment()
    if proxy_bypass(url.netloc) or _is_within(url.hostname or "", named.get("no", "")):
        return None
    return named.get(url.scheme)


def _is_within(host: str, networks: str) -> bool:
    """Whether an address is in NO_PROXY, or in one of its networks (CIDR)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in networks.split(","):
        with suppress(ValueError):
            if address in ipaddress.ip_network(entry.strip().strip("[]"), strict=False):
                return True
    return False
