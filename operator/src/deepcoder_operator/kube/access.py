"""How the API server is reached, and as whom: a pod's service account, or a kubeconfig.

Read here instead of by the official client, whose import alone takes half a second and many megabytes for the types of
all kinds, of which none is used; kopf's connection is made from the same (`session`). What says who we are has to be in
files: a kubeconfig that names a program to ask is refused, with the mend. A pod reaches the API server at an address of
the cluster's own, which no proxy knows, so those of the environment are for kubeconfigs alone.
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
"""A token in a file is read again after this: the kubelet puts a new one there long before the old one ends."""

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class TokenFile:
    """A bearer token that somebody renews in a file."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises `NoAccess` if it is not there."""
        self._path, self._clock = path, clock
        self._token, self._until = _token(path), clock() + TOKEN_SECONDS

    def __call__(self) -> str:
        """The Authorization header; while the file cannot be read the token before it is used."""
        if self._clock() >= self._until:
            self._until = self._clock() + TOKEN_SECONDS
            with suppress(NoAccess):
                self._token = _token(self._path)
        return f"Bearer {self._token}"


@dataclass(frozen=True)
class Access:
    """A server, and what it is to be shown."""

    server: str
    """URL without a slash at its end."""

    tls: ssl.SSLContext | None = None
    """What the server's certificate is checked against, and the client's own; None: the system's authorities."""

    authorization: Callable[[], str] | None = None
    """The Authorization header."""

    server_name: str | None = None
    """Name in the server's certificate, where that is not its host."""

    proxy: str | None = None

    reread: Callable[[], None] = lambda: None
    """Take certificates from their files once more, for connections from now on: whoever meets a certificate that
    nothing here vouches for calls it, since authorities are renewed, too."""


def find() -> Access:
    """From the pod's service account, or from KUBECONFIG (or ~/.kube/config); raises `NoAccess`."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
    if host and port and not os.environ.get("KUBECONFIG"):
        return of_pod(host, port, _ACCOUNT)
    return of_kubeconfig(os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser()))


def of_pod(host: str, port: str, account: Path) -> Access:
    """The service account that Kubernetes mounts into a pod."""
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
    """The current context of one file, or of several, of which the first that names something is followed."""
    config = _Kubeconfig([Path(p).expanduser() for p in paths.split(os.pathsep) if p])
    context, where = config.context()
    cluster, cluster_file = config.entry("clusters", "cluster", context.get("cluster"), where)
    nobody: tuple[Mapping[str, Any], Path] = ({}, where)
    user, user_file = config.entry("users", "user", context["user"], where) if context.get("user") else nobody
    for field in ("exec", "auth-provider"):
        if user.get(field):
            raise NoAccess(
                f"{user_file}: user {context['user']} has {field}, which the operator does not follow: name a user "
                "with a token, tokenFile or client certificate"
            )
    server = str(cluster.get("server") or "").rstrip("/")
    scheme = urlsplit(server).scheme
    if scheme not in ("http", "https"):
        raise NoAccess(f"{cluster_file}: cluster {context['cluster']} has no server with http:// or https://: set it")
    authorization = _authorization(_Files(user, user_file))
    if scheme == "http":  # kubectl's proxy, which shows no certificate: to read all the system's takes a while
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
    """Several files read as one."""

    def __init__(self, paths: list[Path]) -> None:
        self._files: list[tuple[Path, Mapping[str, Any]]] = []
        for path in [p for p in paths if p.exists()] or paths:  # kubectl, too, passes over those that are not there
            try:
                found = yaml.safe_load(path.read_text()) or {}
            except (OSError, yaml.YAMLError) as e:
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
        """An entry by name, and the file that it is in."""
        for path, found in self._files:
            for item in found.get(kind) or ():
                if item.get("name") == name:
                    return item.get(field) or {}, path
        raise NoAccess(f"{where} names {field} {name!r}, which is not among {kind}: add it")


class _Files:
    """What an entry names as a file, or holds itself under `<field>-data`."""

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
        """Of the file; relative ones are so to the kubeconfig."""
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
    """Trust the cluster's authority as it is now, beside those before, and show the user's certificate as it is now."""
    if authority := cluster.read("certificate-authority"):
        context.load_verify_locations(cadata=authority.decode())
    certificate, key = user.read("client-certificate"), user.read("client-key")
    if certificate and key:
        with tempfile.TemporaryDirectory() as directory:  # ssl reads them from files only
            path = Path(directory) / "client.pem"
            path.touch(mode=0o600)
            path.write_bytes(certificate + b"\n" + key)
            context.load_cert_chain(path, password=_nobody_to_ask)


def _nobody_to_ask() -> str:
    """For the passphrase of an encrypted key: the library would ask at the terminal, and wait there."""
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
    """The proxy that the environment names for a server, as HTTPS_PROXY and NO_PROXY are read by kubectl."""
    url, named = urlsplit(server), getproxies_environment()
    if proxy_bypass(url.netloc) or _is_within(url.hostname or "", named.get("no", "")):
        return None
    return named.get(url.scheme)


def _is_within(host: str, networks: str) -> bool:
    """Whether an address is one of NO_PROXY's, or lies in a network of it (CIDR)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in networks.split(","):
        with suppress(ValueError):
            if address in ipaddress.ip_network(entry.strip().strip("[]"), strict=False):
                return True
    return False
