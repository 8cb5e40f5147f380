"""Ports that tests give to servers."""

from __future__ import annotations

import free_ports
import pytest


def test_no_port_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A control plane asks for three before it listens on any."""
    some = free_ports.free_port() // 64 * 64
    monkeypatch.setattr(free_ports, "_PORTS", range(some, some + 64))
    monkeypatch.setattr(free_ports, "_TRIES", 64)
    given = [free_ports.free_port() for _ in range(32)]
    assert len(set(given)) == len(given)
