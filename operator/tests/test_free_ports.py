"""Ports that tests give to servers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import free_ports
import pytest

GIVEN = 32


@pytest.fixture
def few_ports(monkeypatch: pytest.MonkeyPatch) -> range:
    """Twice as many ports as are asked for."""
    some = free_ports.free_port() // 64 * 64
    ports = range(some, some + 2 * GIVEN)
    monkeypatch.setattr(free_ports, "_PORTS", ports)
    monkeypatch.setattr(free_ports, "_TRIES", len(ports))
    return ports


def test_no_port_is_given_twice(few_ports: range) -> None:
    """A control plane asks for three before it listens on any."""
    given = [free_ports.free_port() for _ in range(GIVEN)]
    assert len(set(given)) == len(given)


def test_no_port_is_given_to_two_processes(few_ports: range) -> None:
    """Workers run beside each other, and a server may take seconds until it listens."""
    given = {free_ports.free_port() for _ in range(GIVEN)}
    program = (
        "import free_ports\n"
        f"free_ports._PORTS, free_ports._TRIES = {few_ports!r}, {len(few_ports)}\n"
        "try:\n"
        "    while True:\n"
        "        print(free_ports.free_port())\n"
        "except RuntimeError:\n"
        "    pass\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    others = {int(line) for line in said.split()}
    assert others
    assert not given & others
