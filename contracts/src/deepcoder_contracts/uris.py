"""The forms of address that settings accept, and the addresses to which no setting may lead."""

from __future__ import annotations

import ipaddress
import socket
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import StringConstraints

SourceURI = Annotated[str, StringConstraints(pattern=r"^(hf://|s3://|file:///|/)[^\s]+$")]
"""`hf://org/name`, `s3://bucket/key`, `file:///path`, or a path in the image."""


def is_link_local(address: str) -> bool:
    """Whether an IP address is on the local link, where clouds serve credentials (169.254.169.254). Loopback is a
    separate check."""
    found = _parsed(address)
    return found.is_link_local or found.is_unspecified or found.is_multicast


def is_loopback(address: str) -> bool:
    """Whether an IP address is a loopback address."""
    return _parsed(address).is_loopback


def names_this_machine(url: str) -> bool:
    """Whether a URL's host is written as localhost or a loopback address. No name is resolved."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or is_loopback(host)
    except ValueError:
        return False


def resolves_to_local(url: str, *, loopback: bool) -> bool:
    """Whether a URL's host resolves to the local link or, unless `loopback` allows it, to this machine.

    Blocks on name resolution. A name that does not resolve counts as not local: the request itself will fail and say
    so.
    """
    parts = urlsplit(url)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    addresses = [str(place[0]) for *_, place in found]
    return any(is_link_local(each) or (is_loopback(each) and not loopback) for each in addresses)


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    found = ipaddress.ip_address(address.partition("%")[0])
    return getattr(found, "ipv4_mapped", None) or found
