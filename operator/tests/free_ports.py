"""A port for a server that is started again under the same port: below those that the kernel hands out by itself
(net.ipv4.ip_local_port_range), of which another program could get it between an end and the next start."""

from __future__ import annotations

import random
import socket

_PORTS = range(12000, 32768)
_TRIES = 100
_given: set[int] = set()
"""A test asks for several before a server listens on the first."""

_RANDOM = random.SystemRandom()  # not the seeded one: workers beside each other must not try the same ports in turn


def free_port() -> int:
    """One that nobody listens on, at loopback or elsewhere, and that this process was not given before."""
    for port in _RANDOM.sample(_PORTS, _TRIES):
        if port in _given:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what is in TIME_WAIT is in nobody's way
            try:
                probe.bind(("", port))
            except OSError:
                continue
            _given.add(port)
            return port
    raise RuntimeError(f"{_TRIES} ports of {_PORTS} are taken")
