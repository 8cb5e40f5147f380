"""The live trainer's own words: Ray's job supervisor lets it print into a file within the head, which no log has.

So it is read by a command in the head's container, which needs the rights to get and create pods/exec; once the attempt
has ended the file's end is in the run's folder, for whoever may read that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from http import HTTPStatus
from urllib.parse import urlencode

import websocket
from kubernetes.stream.ws_client import WSClient

from deepcoder_client.connection import PODS, Connection
from deepcoder_client.errors import Forbidden, Unreachable
from deepcoder_client.rights import socket_rights
from deepcoder_contracts.labels import HEAD_CONTAINER

FILES = "/tmp/ray/session_latest/logs/job-driver-*.log"  # noqa: S108  in the head's container
_WAIT_SECONDS = 1.0
_READ_SECONDS = 60.0
"""Longest time for lines that are there: a kubelet that has stopped leaves the connection open."""


def driver_lines(connection: Connection, namespace: str, head: str, *, tail: int, follow: bool) -> Iterator[str]:
    """The last lines that the trainer in a head pod printed; with `follow` also what it prints, until the head goes."""
    rights = socket_rights("pods/exec", namespace)
    if (missing := connection.lacking(rights, head)) is not None:
        raise Forbidden(missing)
    program = f"exec tail -n {int(tail)} {'-F ' if follow else ''}{FILES}"
    query = [("container", HEAD_CONTAINER), ("stdout", "true"), ("stderr", "true")]
    query += [("command", word) for word in ("sh", "-c", program)]
    address = connection.host.replace("http", "ws", 1) + PODS.path(namespace, head, "exec")
    websocket.setdefaulttimeout(connection.timeout)
    headers = connection.socket_headers()
    try:
        stream = WSClient(connection.configuration, f"{address}?{urlencode(query)}", headers, False)
    except (websocket.WebSocketException, OSError) as error:
        if getattr(error, "status_code", None) == HTTPStatus.FORBIDDEN:
            raise Forbidden(connection.lacking(rights, head) or rights[-1]) from error
        raise Unreachable(f"pod {head} cannot be looked into: {error}") from error
    rest, until = "", time.monotonic() + _READ_SECONDS
    try:
        while stream.is_open():
            if not follow and time.monotonic() > until:
                raise Unreachable(f"pod {head} has not said all it printed within {_READ_SECONDS:.0f} s")
            stream.update(timeout=_WAIT_SECONDS)
            *whole, rest = (rest + _read(stream)).split("\n")
            yield from whole
    except (websocket.WebSocketException, OSError) as error:
        raise Unreachable(f"pod {head} broke off: {error}") from error
    finally:
        stream.close()
    if rest:
        yield rest


def _read(stream: WSClient) -> str:
    text = ""
    for peek, read in ((stream.peek_stdout, stream.read_stdout), (stream.peek_stderr, stream.read_stderr)):
        if peek():
            text += read()
    return text
