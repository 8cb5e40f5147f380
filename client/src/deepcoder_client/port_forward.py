"""Forwards a connection to a port inside a pod through the API server, and gets the user's bearer token for it.

Such a port can listen on the pod's loopback interface only. Forwarding needs the permissions to get and create
pods/portforward.
"""

from __future__ import annotations

import time
from datetime import datetime
from http import HTTPStatus
from typing import Any, Protocol

import websocket
from kubernetes.client import ApiException
from kubernetes.stream.ws_client import portforward_call

from deepcoder_client.connection import PODS, SERVICE_ACCOUNTS, Connection
from deepcoder_client.errors import Forbidden, NoToken, Unreachable
from deepcoder_client.permissions import DASHBOARD, Right, socket_rights

TOKEN_SECONDS = 3600
_RENEW_SECONDS = 300.0
"""A token is renewed this many seconds before it expires."""


class Stream(Protocol):
    """The part of the socket interface that callers use."""

    def recv(self, size: int, /) -> bytes:
        """Return received bytes; empty at the end of the stream."""

    def sendall(self, data: bytes, /) -> None:
        """Send all bytes."""

    def settimeout(self, seconds: float | None, /) -> None:
        """Set the timeout of the other calls in seconds; None waits without limit."""

    def shutdown(self, how: int, /) -> None:
        """Shut the stream down, which wakes a thread that waits in `recv`."""

    def close(self) -> None:
        """Close the stream."""


def forward_rights(namespace: str) -> tuple[Right, Right]:
    """Return the permissions that `port_forward` needs in the chart's namespace."""
    return socket_rights("pods/portforward", namespace, DASHBOARD)


def port_forward(connection: Connection, namespace: str, pod: str, port: int) -> Stream:
    """Connect to a port of a pod. Raises `Unreachable`, `Forbidden` and `Refused`."""
    address = connection.host.replace("http", "ws", 1) + PODS.path(namespace, pod, "portforward")
    websocket.setdefaulttimeout(connection.timeout)
    headers = connection.socket_headers()
    try:
        opened = portforward_call(
            connection.configuration, "GET", address, query_params=[("ports", str(port))], headers=headers
        )
    except ApiException as error:
        if getattr(error.__context__, "status_code", None) == HTTPStatus.FORBIDDEN:
            rights = forward_rights(namespace)
            raise Forbidden(connection.lacking(rights, pod) or rights[-1]) from error
        raise Unreachable(f"port {port} of pod {pod} cannot be reached: {error.reason}") from error
    stream: Stream = opened.socket(port)
    return stream


class Bearer:
    """The user's own token, or that of a ServiceAccount, which is renewed before it expires."""

    def __init__(self, connection: Connection, account: str | None = None, namespace: str | None = None) -> None:
        """Use ServiceAccount `account`, or without one the user's own token. Raises `NoToken` if there is neither."""
        self._connection, self._account, self._namespace = connection, account, namespace or connection.namespace
        self._kept, self._until = "", 0.0
        if connection.acting:
            raise NoToken(
                f"this connection acts as {connection.acting.name} (--as, or users[].user.as of your kubeconfig), and "
                "its token is not that account's: use a context whose user is the account itself"
            )
        if not account and not self._own():
            raise NoToken(
                "your kubeconfig identifies you by a certificate, which can be shown to the API server only: name a "
                "ServiceAccount that may see the runs with --service-account NAME"
            )

    def token(self) -> str:
        """Return the token. Renew a ServiceAccount's token first if it expires soon."""
        if not self._account:
            return self._own()
        if time.time() > self._until - _RENEW_SECONDS:
            answer: dict[str, Any] = self._connection.create(
                SERVICE_ACCOUNTS,
                self._namespace,
                {
                    "apiVersion": "authentication.k8s.io/v1",
                    "kind": "TokenRequest",
                    "spec": {"expirationSeconds": TOKEN_SECONDS},
                },
                below="token",
                name=self._account,
            )
            self._kept = str(answer["status"]["token"])
            self._until = datetime.fromisoformat(answer["status"]["expirationTimestamp"]).timestamp()
        return self._kept

    def _own(self) -> str:
        found = {key.lower(): value for key, value in self._connection.headers().items()}.get("authorization", "")
        kind, _, token = found.partition(" ")
        return token if kind.lower() == "bearer" else ""
