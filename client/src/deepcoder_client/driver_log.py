"""The output of the live trainer. Ray's job supervisor writes it to a file inside the head, not to a container log.

So a command in the head's container reads it, which needs the permissions to get and create pods/exec. After the
attempt has ended, the end of the file is in the run's folder, for users who may read that. The file does not exist
before Ray starts the trainer: a follower waits for it, and a single read raises `NoData`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from http import HTTPStatus
from urllib.parse import urlencode

import websocket
from kubernetes.stream.ws_client import ERROR_CHANNEL, WSClient

from deepcoder_client.connection import PODS, Connection
from deepcoder_client.errors import Forbidden, NoData, Unreachable
from deepcoder_client.permissions import socket_rights
from deepcoder_contracts.labels import HEAD_CONTAINER

FILES = "/tmp/ray/session_latest/logs/job-driver-*.log"  # noqa: S108  in the head's container
NOTHING_YET = 3
"""Exit status of the command if there is no file. `tail` has other statuses."""
_WAIT_SECONDS = 1.0
_READ_SECONDS = 60.0
"""Longest time in seconds to read the existing lines; a stopped kubelet leaves the connection open."""


def driver_lines(connection: Connection, namespace: str, head: str, *, tail: int, follow: bool) -> Iterator[str]:
    """Yield the last `tail` lines of the trainer in a head pod; with `follow` also new ones, until the head is gone.

    Raises `NoData` if the trainer has not begun, `Forbidden` and `Unreachable`.
    """
    rights = socket_rights("pods/exec", namespace)
    if (missing := connection.lacking(rights, head)) is not None:
        raise Forbidden(missing)
    query = [("container", HEAD_CONTAINER), ("stdout", "true"), ("stderr", "true")]
    query += [("command", word) for word in ("sh", "-c", program(tail, follow=follow))]
    address = connection.host.replace("http", "ws", 1) + PODS.path(namespace, head, "exec")
    websocket.setdefaulttimeout(connection.timeout)
    headers = connection.socket_headers()
    try:
        stream = WSClient(connection.configuration, f"{address}?{urlencode(query)}", headers, False, binary=True)
    except (websocket.WebSocketException, OSError) as error:
        if getattr(error, "status_code", None) == HTTPStatus.FORBIDDEN:
            raise Forbidden(connection.lacking(rights, head) or rights[-1]) from error
        raise Unreachable(f"no command can be run in pod {head}: {error}") from error
    rest, until = b"", time.monotonic() + _READ_SECONDS
    try:
        while stream.is_open():
            if not follow and time.monotonic() > until:
                raise Unreachable(f"pod {head} has not said all it printed within {_READ_SECONDS:.0f} s")
            stream.update(timeout=_WAIT_SECONDS)
            *whole, rest = (rest + _read(stream)).split(b"\n")  # a piece may end within a character, a line does not
            yield from (line.decode(errors="replace") for line in whole)
        if _exit_status(stream) == NOTHING_YET:
            raise NoData(f"the trainer has not begun in pod {head}: -f waits for it")
    except (websocket.WebSocketException, OSError) as error:
        raise Unreachable(f"the connection to pod {head} broke off: {error}") from error
    finally:
        stream.close()
    if rest:
        yield rest.decode(errors="replace")


def program(tail: int, *, follow: bool, files: str = FILES) -> str:
    """Return the shell script to run in the head. Without a file it waits or exits: `tail` would take the pattern as
    a file name."""
    without = "sleep 1" if follow else f"exit {NOTHING_YET}"
    wait = f'set -- {files}; until [ -e "$1" ]; do {without}; set -- {files}; done'
    return f'{wait}; exec tail -n {int(tail)} {"-F " if follow else ""}"$@"'


def _exit_status(stream: WSClient) -> int | None:
    """Return the command's exit status as the kubelet reports it, or None."""
    try:
        return int(json.loads(stream.read_channel(ERROR_CHANNEL))["details"]["causes"][0]["message"])
    except (ValueError, KeyError, IndexError, TypeError):
        return None


def _read(stream: WSClient) -> bytes:
    text = b""
    for peek, read in ((stream.peek_stdout, stream.read_stdout), (stream.peek_stderr, stream.read_stderr)):
        if peek():
            text += read()
    return text
