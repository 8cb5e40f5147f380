"""Namespaces of a zygote."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Space:
    """Where runners live."""

    proc: str
    """Mounted /proc whose pids are ours."""

    scratch: str | None
    """Directory a program may write in, None for none."""

    program_uid: int | None
    """User that runners become."""

    max_threads: int
    """Threads and processes of that user."""

    clean: Callable[[], None]
    """Removes what a program left behind."""


def _nothing_to_clean() -> None:
    return


NO_NAMESPACES = Space(proc="/proc", scratch=None, program_uid=None, max_threads=4096, clean=_nothing_to_clean)
"""The host's view: nothing writable, so nothing to clean."""


def enter(config: dict[str, Any], channel: socket.socket) -> Space | None:
    """Enter."""
    raise OSError("not yet")
