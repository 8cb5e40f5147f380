"""A port for a server that is started again under the same port: below those that the kernel hands out by itself
(net.ipv4.ip_local_port_range), of which another program could get it between an end and the next start.

Workers beside each other draw from the same range, and a server may take seconds until it listens. Each port is
therefore claimed by a socket with its number for a name, which no second process can bind. The claim ends with the
process.
"""

from __future__ import annotations

import random
import socket

_PORTS = range(12000, 32768)
_TRIES = 100
_claims: dict[int, socket.socket] = {}
"""A test asks for several before a server listens on the first."""

_RANDOM = random.SystemRandom()  # not the seeded one: workers beside each other must not try the same ports in turn


def free_port() -> int:
    """One that nobody listens on, at loopback or elsewhere, and that neither this process nor another was given."""
    for port in _RANDOM.sample(_PORTS, _TRIES):
        if port not in _claims and _claim(port):
            return port
    raise RuntimeError(f"{_TRIES} ports of {_PORTS} are taken")


def _claim(port: int) -> bool:
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0deepcoder-test-port-{port}")  # in Linux' abstract namespace: no file is left behind
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what is in TIME_WAIT is in nobody's way
            probe.bind(("", port))
    except OSError:
        claim.close()
        return False
    _claims[port] = claim
    return True
