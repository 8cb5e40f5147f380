"""HTTP behaviour that all judge clients share: the pause before a retry, and when a silent peer counts as gone."""

from __future__ import annotations

import math
import socket
import time
from email.utils import parsedate_to_datetime
from typing import Any

MAX_REST_SECONDS = 60.0
"""Longest pause before the next request to a judge, whatever it asks for."""
CONNECT_SECONDS = 5.0

_UNSAID = 1.0
_KEEPALIVE = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}
"""A peer is gone if it answers no keep-alive probe for 30 s, or leaves data unacknowledged for that long."""
_UNACKNOWLEDGED_MS = 30_000


def rest_seconds(retry_after: str | None) -> float:
    """Return the seconds of a Retry-After header, which is a number or a date; 1 if there is none."""
    try:
        seconds = float(retry_after or _UNSAID)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after or "").timestamp() - time.time()
        except (ValueError, OverflowError, OSError):
            seconds = _UNSAID
    if math.isnan(seconds):
        seconds = _UNSAID
    return min(max(seconds, 0.1), MAX_REST_SECONDS)


def watched_socket(address: Any) -> socket.socket:
    """Return a TCP socket that detects a lost node: an answer may take minutes, but keep-alive probes may not."""
    family, kind, protocol = address[:3]
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
    return made
